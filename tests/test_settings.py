import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerformer.allowed import SETTINGS, conflicts
from peerformer.config import Config, ModelConfig, TrainingConfig
from peerformer.errors import ConfigError
from peerformer.presets import SIZES
from peerformer.settings import from_json, resolve, schema, to_json, validate


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def refusal(**sources):
    with pytest.raises(ConfigError) as caught:
        resolve(**sources)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("size", SIZES)
def test_every_preset_is_valid_and_names_only_settings(size):
    resolved = resolve(size=size)
    validate(resolved.config, where="test")
    assert resolved.config.size == size
    assert set(SIZES[size]) <= set(SETTINGS)


def test_the_defaults_are_those_of_the_config_page():
    resolved = resolve()
    assert resolved.config == Config()
    assert set(resolved.origins) == set(SETTINGS)
    assert set(resolved.origins.values()) == {"default"}


def test_each_source_overrules_the_ones_before_it_and_leaves_its_name(tmp_path):
    low = write(tmp_path / "low.json", {"model": {"num_layers": 7}, "training": {"steps": 70}})
    high = write(tmp_path / "high.json", {"training": {"steps": 71, "seed": 71}})
    resolved = resolve(
        size="nano",
        files=[low, high],
        environment={"PEERFORMER_TRAINING__SEED": "72", "PEERFORMER_DATA__MAX_BYTES": "2_000"},
        overrides={"data.max_bytes": "3000"},
    )
    config, origins = resolved.config, resolved.origins
    assert config.model.head_dim == 32 and origins["model.head_dim"] == "size nano"
    assert config.model.num_layers == 7 and origins["model.num_layers"] == str(low)
    assert config.training.steps == 71 and origins["training.steps"] == str(high)
    assert config.training.seed == 72
    assert origins["training.seed"] == "environment PEERFORMER_TRAINING__SEED"
    assert config.data.max_bytes == 3000 and origins["data.max_bytes"] == "command line"


def test_the_size_of_the_strongest_source_derives_the_rest(tmp_path):
    file = write(tmp_path / "run.json", {"size": "nano"})
    assert resolve(files=[file]).config.model.hidden_size == 128
    assert resolve(files=[file], size="small").config.model.hidden_size == 512
    environment = {"PEERFORMER_SIZE": "medium"}
    assert resolve(files=[file], environment=environment).config.model.hidden_size == 1024


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"training": {"stepz": 5}}, ["'training.stepz'", "did you mean training.steps?"]),
        ({"trainig": {"steps": 5}}, ["'trainig'"]),
        ({"training.steps": 5}, ["must be nested", '{"training": {"steps": …}}']),
        ({"training": {"steps": "5"}}, ["training.steps is '5'", "a whole number of at least 1"]),
        ({"training": {"steps": 5.0}}, ["training.steps is 5.0", "a whole number"]),
        ({"training": {"steps": True}}, ["training.steps is True", "a whole number"]),
        ({"training": {"steps": 0}}, ["training.steps is 0", "at least 1"]),
        ({"training": {"steps": None}}, ["training.steps is None"]),
        ({"training": 5}, ["training is 5", "a JSON object"]),
        ({"model": {"num_layers": 513}}, ["at least 1 and at most 512"]),
        ({"model": {"tie_embeddings": 1}}, ["model.tie_embeddings is 1", "true or false"]),
        ({"optimizer": {"name": "moun"}}, ["one of: muon, adamw", "did you mean muon?"]),
        ({"data": {"path": 3}}, ["data.path is 3", "text or null"]),
        ([1], ["a JSON object, not [1]"]),
        ("{", ["not JSON", "line 1"]),
        ('{"size": "nano", "size": "tiny"}', ["'size' is given twice"]),
        ('{"optimizer": {"epsilon": NaN}}', ["optimizer.epsilon is nan", "a number"]),
        ('{"optimizer": {"epsilon": Infinity}}', ["optimizer.epsilon is inf"]),
        ("[" * 100_000, ["not JSON"]),
    ],
)
def test_a_bad_file_is_refused_with_its_name_the_key_and_what_is_allowed(tmp_path, content, said):
    file = write(tmp_path / "my-run.json", content)
    message = refusal(files=[file])
    for words in ["my-run.json", *said]:
        assert words in message


def test_a_missing_file_and_one_that_is_not_text_are_named(tmp_path):
    assert "nowhere.json" in refusal(files=[tmp_path / "nowhere.json"])
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in refusal(files=[binary])


def test_the_environment_refuses_slips_and_leaves_foreign_variables_alone():
    kubernetes = {"PEERFORMER_PORT_8080_TCP": "tcp://10.0.0.1:8080", "PEERFORMER_DEBUG": "1"}
    assert resolve(environment={**kubernetes, "PATH": "x"}).config == Config()
    slip = refusal(environment={"PEERFORMER_TRAINING_STEPS": "5"})
    assert "PEERFORMER_TRAINING__STEPS" in slip
    unknown = refusal(environment={"PEERFORMER_TRAINING__STEPZ": "5"})
    assert "PEERFORMER_TRAINING__STEPZ" in unknown and "training.steps" in unknown


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("training.steps", "1_000", 1000),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("optimizer.learning_rate", "1", 1.0),
        ("model.tie_embeddings", "No", False),
        ("model.tie_embeddings", "true", True),
        ("data.path", "none", None),
        ("data.path", "texts/a.txt", "texts/a.txt"),
        ("optimizer.name", "adamw", "adamw"),
    ],
)
def test_text_of_the_command_line_is_read_as_the_type_of_the_field(name, text, value):
    section, field = name.split(".")
    result = getattr(getattr(resolve(overrides={name: text}).config, section), field)
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("training.steps", "many"),
        ("training.steps", "5.5"),
        ("optimizer.beta1", "nan"),
        ("model.tie_embeddings", "maybe"),
        ("size", "tinny"),
        ("training.nothing", "1"),
    ],
)
def test_text_that_does_not_fit_is_refused_with_its_source(name, text):
    message = refusal(overrides={name: text})
    assert name in message and "command line" in message


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.num_kv_heads": 3},
        {"model.head_dim": 31},
        {"training.batch_size": 8, "training.accumulation": 3},
        {"training.sequence_length": 512},
        {"model.vocab_size": 300},
        {"swarm.contributions_min": 9, "swarm.contributions_max": 8},
        {"swarm.vouchers": 3, "swarm.peers": 2},
        {"training.steps": 5, "training.warmup_steps": 6},
    ],
)
def test_values_that_cannot_stand_together_are_refused_with_both_names(overrides):
    message = refusal(overrides=overrides)
    for name in overrides:
        assert name in message
    assert "try:" in message


def test_a_short_run_shortens_a_warm_up_that_nobody_asked_for():
    resolved = resolve(overrides={"training.steps": 5})
    assert resolved.config.training.warmup_steps == 5
    assert "shortened" in resolved.origins["training.warmup_steps"]
    assert from_json(to_json(resolved.config), where="run.json") == resolved.config


def test_validate_judges_a_config_made_in_code():
    validate(Config(), where="test")
    with pytest.raises(ConfigError, match="training.steps"):
        validate(Config(training=TrainingConfig(steps=0)), where="test")
    with pytest.raises(ConfigError, match="num_kv_heads"):
        validate(Config(model=ModelConfig(num_kv_heads=3)), where="test")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(name=st.sampled_from(sorted(SETTINGS)), value=json_values)
def test_any_json_value_is_either_refused_or_gives_a_valid_config(name, value):
    section, _, field = name.rpartition(".")
    mapping = {section: {field: value}} if section else {field: value}
    try:
        config = from_json(mapping, where="fuzz.json")
    except ConfigError as error:
        assert "fuzz.json" in str(error)
        return
    validate(config, where="fuzz.json")
    assert not list(conflicts(config))
    assert from_json(json.loads(json.dumps(to_json(config))), where="again") == config


def test_the_schema_describes_every_setting():
    described = schema()
    json.dumps(described)
    names = set()
    for key, entry in described["properties"].items():
        if entry["type"] == "object":
            assert entry["additionalProperties"] is False
            names |= {f"{key}.{inner}" for inner in entry["properties"]}
        else:
            names.add(key)
    assert names == set(SETTINGS)
    steps = described["properties"]["training"]["properties"]["steps"]
    assert steps["type"] == "integer" and steps["minimum"] == 1 and steps["description"]


def test_every_default_is_allowed_and_every_setting_explained():
    for setting in SETTINGS.values():
        assert setting.help and setting.allowed
    assert dataclasses.asdict(Config()).keys() == {n.split(".")[0] for n in SETTINGS}


def test_a_sparse_codec_derives_an_outer_step_that_suits_it_and_what_is_given_wins():
    from peerformer.gradients.compress import CODECS

    assert set(SETTINGS["swarm.codec"].choices or ()) == set(CODECS)
    dense, sparse = resolve().config.swarm, resolve(overrides={"swarm.codec": "sparse-2bit"})
    assert (dense.outer_learning_rate, dense.outer_momentum, dense.feedback) == (0.7, 0.5, 1.0)
    swarm = sparse.config.swarm
    assert (swarm.outer_learning_rate, swarm.outer_momentum, swarm.feedback) == (1.0, 0.0, 0.95)
    assert sparse.origins["swarm.outer_momentum"] == "codec sparse-2bit"
    given = {"swarm.codec": "sparse-2bit", "swarm.outer_momentum": 0.3}
    assert resolve(overrides=given).config.swarm.outer_momentum == 0.3


def test_unlike_texts_derive_scores_that_suit_them_unless_they_are_given() -> None:
    unlike = resolve(size="nano", overrides={"swarm.texts": "unlike"})
    alike = resolve(size="nano").config.swarm
    assert unlike.config.swarm.harm_micronats > alike.harm_micronats
    assert unlike.config.swarm.score_sequences > alike.score_sequences
    assert unlike.origins["swarm.harm_micronats"] == "texts unlike"
    given = {"swarm.texts": "unlike", "swarm.harm_micronats": 7}
    assert resolve(size="nano", overrides=given).config.swarm.harm_micronats == 7
