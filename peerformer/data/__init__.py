"""From text to batches: documents, tokenizer, shards, and random access to what is trained on."""
