"""What a checkpoint holds of its model: all weights, the rounded ones and theirs, or adapters.

A checkpoint is a model that others can load as it is. Where weights are rounded in training, that
is the rounded model, and what the rounding was of lies beside it in `masters.safetensors`, for the
next step. Where adapters are trained, they are all that is written, in PEFT's form; the model that
they adapt is in the run's folder `base`.

Knows nothing about optimizers, or about how files are put in their place.
"""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from peerformer.data.tokenizer import FILE_NAME
from peerformer.model.adapter import ADAPTER_WEIGHTS, read_factors, write_adapter
from peerformer.model.convert import from_hf_state, save_model
from peerformer.model.find import BASE
from peerformer.model.lora import adapted_layers
from peerformer.model.quantise import quantised_layers
from peerformer.model.transformer import Transformer
from peerformer.model.weights import WEIGHTS_FILE

MASTERS = "masters.safetensors"


def write_trained(directory: Path, model: Transformer, tokenizer_bytes: bytes) -> None:
    """Write a model, as it is in training, into an existing directory."""
    if adapted_layers(model):
        write_adapter(directory, model, f"../../{BASE}")
        (directory / FILE_NAME).write_bytes(tokenizer_bytes)
        return
    masters = _masters(model)
    save_model(directory, _as_used(model) if masters else model, tokenizer_bytes)
    if masters:
        save_file(masters, directory / MASTERS)


def read_trained(directory: Path, model: Transformer) -> dict[str, Tensor]:
    """Read what `write_trained` wrote of a model of the same kind; the model is not changed.

    Returns:
        every parameter that is trained, by its name in the model.

    Raises:
        CheckpointError, ValueError, SafetensorError, OSError: it is of another model.
    """
    if adapted_layers(model):
        return read_factors(model, directory)
    state: dict[str, Tensor] = from_hf_state(
        load_file(directory / WEIGHTS_FILE), model.config
    ).state_dict()
    wanted = _masters(model)
    masters = load_file(directory / MASTERS) if wanted else {}
    for name, weight in wanted.items():
        found = masters.get(name)
        if found is None or (found.shape, found.dtype) != (weight.shape, weight.dtype):
            raise ValueError(f"{MASTERS} does not hold {name} in its shape")
    if masters.keys() - wanted.keys():
        raise ValueError(f"{MASTERS} holds weights that are not rounded in this run")
    return state | masters


def has_weights(names: set[str]) -> bool:
    """Tell whether files of these names hold the weights of a checkpoint."""
    return WEIGHTS_FILE in names or ADAPTER_WEIGHTS in names


def _masters(model: Transformer) -> dict[str, Tensor]:
    layers = quantised_layers(model)
    return {f"{n}.weight": layer.weight.detach().contiguous() for n, layer in layers.items()}


def _as_used(model: Transformer) -> Transformer:
    """A plain model with the rounded weights."""
    rounded = {f"{n}.weight": layer.exported() for n, layer in quantised_layers(model).items()}
    plain = Transformer(model.config)
    plain.load_state_dict({**model.state_dict(), **rounded})
    return plain
