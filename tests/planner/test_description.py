"""A config alone gives the parameters, FLOPs and bytes that are published for the model."""

import json

import pytest

from penstock.errors import UserError
from penstock.planner import describe
from penstock.planner.description import _KINDS

LLAMA_405B = {
    "model_type": "llama",
    "num_hidden_layers": 126,
    "hidden_size": 16384,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "intermediate_size": 53248,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
GPT3_175B = {
    "model_type": "gpt2",
    "n_layer": 96,
    "n_embd": 12288,
    "n_head": 96,
    "vocab_size": 51200,
    "n_positions": 2048,
}


def test_llama_3_405b_has_its_published_parameters_to_the_last_one() -> None:
    assert describe(LLAMA_405B).parameters == 405_853_388_800


def test_gpt_3_has_its_175_billion_parameters_but_for_biases() -> None:
    # Narayanan et al. 2021, equation 2, whose 13 h of a layer are biases and norms, of which we count the norms' own.
    hidden, layers = 12288, 96
    published = 12 * layers * hidden**2 * (1 + 13 / (12 * hidden) + (51200 + 2048) / (12 * layers * hidden))
    assert describe(GPT3_175B).parameters == pytest.approx(published, rel=1e-4)


def test_step_flops_are_those_of_the_published_formula_without_recomputation() -> None:
    # Narayanan et al. 2021, equation 3: 96·B·s·l·h²·(1 + s/6h + V/16lh), with the layers' forward run twice.
    batch, sequence, layers, hidden, vocabulary = 1536, 2048, 96, 12288, 51200
    layer_part = 72 * batch * sequence * layers * hidden**2 * (1 + sequence / (6 * hidden))
    head_part = 6 * batch * sequence * hidden * vocabulary
    assert describe(GPT3_175B).step_flops(batch, sequence) == pytest.approx(layer_part + head_part, rel=1e-12)


def test_activations_of_a_layer_are_those_of_the_literature_without_the_scores_and_dropout() -> None:
    # Korthikanti et al. 2022, equation 1: s·b·h·(34 + 5·a·s/h); 2 of the 34 are masks of dropout, 5·a·s/h the scores.
    assert describe(GPT3_175B).layer_activation_bytes(2048) == 2048 * 12288 * (34 - 2)


def test_a_gated_layer_keeps_both_projections_and_their_product() -> None:
    model = describe(LLAMA_405B)
    assert model.layer_activation_bytes(1) == 2 * (4 * 16384 + 2 * 16384 + 2 * 1024 + 3 * 53248)
    assert model.boundary_bytes(8192) == 2 * 8192 * 16384


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "config: hidden_size=None; use a whole number of at least 1"),
        ({"num_hidden_layers": 1.5}, "config: num_hidden_layers=1.5; use a whole number"),
        ({"num_attention_heads": 0}, "config: num_attention_heads=0"),
        (
            {"num_attention_heads": 100},
            "hidden_size=16384 is no multiple of num_attention_heads=100; state head_dim too",
        ),
        ({"vocab_size": True}, "config: vocab_size=True"),
    ],
)
def test_a_config_that_describes_no_decoder_is_told_in_one_sentence(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        describe(LLAMA_405B | change)


def test_what_is_not_described_is_refused_and_not_taken_for_something_else() -> None:
    with pytest.raises(
        UserError, match=r"num_local_experts=8; mixtures of experts are not described, state the widths"
    ):
        describe(LLAMA_405B | {"model_type": "mixtral", "num_local_experts": 8})
    with pytest.raises(UserError, match=r"model_type='lama' is not described. Did you mean \"llama\"\?"):
        describe(LLAMA_405B | {"model_type": "lama"})
    with pytest.raises(UserError, match=r"model_type=None is not described. docs/plan.md lists what is"):
        describe({key: value for key, value in LLAMA_405B.items() if key != "model_type"})


def test_heads_are_tied_as_the_kind_has_them_where_the_config_does_not_say() -> None:
    silent = {key: value for key, value in LLAMA_405B.items() if key != "tie_word_embeddings"}
    assert not describe(silent).tied
    assert describe(silent | {"model_type": "gemma"}).tied
    assert not describe(silent | {"model_type": "gemma", "tie_word_embeddings": False}).tied


@pytest.mark.models
@pytest.mark.parametrize("name", _KINDS)
def test_a_kind_has_the_parameters_that_transformers_gives_it(name: str) -> None:
    """But for biases and the norms inside of attention, of which there is less than one in a hundred."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    config = transformers.AutoConfig.for_model(name)
    with torch.device("meta"):
        built = transformers.AutoModelForCausalLM.from_config(config)
    told = describe(config.to_dict())
    assert told.parameters == pytest.approx(sum(each.numel() for each in built.parameters()), rel=2e-3)
    assert told.tied == (built.get_input_embeddings().weight is built.get_output_embeddings().weight)
    usual = json.loads(config.to_json_string(use_diff=False))
    del usual["tie_word_embeddings"]
    assert describe(usual).tied == told.tied


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"the config has no num_hidden_layers or n_layer; give the config.json"):
        describe({"hidden_size": 64})
    with pytest.raises(UserError, match="config is 'llama'"):
        describe("llama")
