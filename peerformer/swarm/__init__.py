"""Modules of the user's own in a swarm: `peerformer.Swarm`, and `peerformer.Coordinator` alone."""
