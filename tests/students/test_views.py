import numpy as np
import pytest
import torch
from small_families import LENGTH, N_VOCABULARY, PRINCIPAL, WIDTH, family_model
from transformers import OPTConfig

from geofloor.students import make_student
from geofloor.students._principal import _measure, has_principal_start, project_weights
from geofloor.students._views import transformer_view


@pytest.fixture
def tokens(rng):
    return rng.integers(2, N_VOCABULARY, size=(12, LENGTH))


def view_of(model):
    return transformer_view(model.config, model)


@torch.no_grad()
def assert_same_logits(student, teacher, tokens, atol):
    ids = torch.from_numpy(tokens)
    expected = teacher(ids).logits
    assert expected.std() > 1
    torch.testing.assert_close(student(ids).logits, expected, rtol=0, atol=atol)


@torch.no_grad()
def without_what_a_tied_embedding_can_not_hold(view):
    """Make the final gain equal in all directions, which a tied embedding can't absorb otherwise."""
    if view.tied:
        view.norm.set_gain(torch.full_like(view.norm.weight, 1.5))
    if view.norm.bias is not None:
        view.norm.bias.zero_()


@pytest.mark.parametrize("name", PRINCIPAL)
def test_a_start_at_the_teachers_own_width_is_the_teacher(tokens, name):
    teacher = family_model(PRINCIPAL[name])
    assert has_principal_start(teacher)
    student = make_student(teacher, WIDTH, init="principal", random_state=0, tokens=tokens)
    assert_same_logits(student, teacher, tokens, atol=1e-4)


@pytest.mark.parametrize("name", PRINCIPAL)
def test_a_projection_on_all_directions_is_the_teacher(tokens, rng, name):
    # Weights of equal shapes are copied by make_student, so this projects them without it.
    teacher = family_model(PRINCIPAL[name])
    source = view_of(teacher)
    moments = _measure(source, teacher, tokens)
    if source.norm.bias is None:
        # Directions that are the teacher's dimensions in another order keep gains after sublayers exact.
        moments = moments._replace(stream=torch.diag(torch.from_numpy(rng.permutation(WIDTH) + 1.0)))
    else:
        without_what_a_tied_embedding_can_not_hold(source)
    student = make_student(teacher, WIDTH, random_state=0).requires_grad_(False)
    project_weights(source, view_of(student), moments)
    assert_same_logits(student, teacher, tokens, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma", "qwen2", "smollm3"])
def test_a_final_gain_before_a_tied_unembedding_is_kept_in_all_directions(tokens, name):
    teacher = family_model(PRINCIPAL[name])
    source = view_of(teacher)
    assert source.tied
    assert source.norm.gain.std() > 0.1
    student = make_student(teacher, WIDTH, random_state=0).requires_grad_(False)
    project_weights(source, view_of(student), _measure(source, teacher, tokens))
    assert_same_logits(student, teacher, tokens, atol=1e-4)


@torch.no_grad()
def use_half(view):
    """Restrict a teacher to half of its dimensions, heads and units."""
    centered = view.norm.bias is not None
    # A student without the mean of its dimensions reserves its mean direction.
    plane = torch.randn(WIDTH, WIDTH // 2 - 2 * centered, generator=torch.Generator().manual_seed(0))
    plane = torch.linalg.qr(plane - plane.mean(0) if centered else plane)[0]
    onto = plane @ plane.T
    for each in view.embeddings:
        each.copy_(each @ onto)
    for attention, feed_forward in view.blocks:
        for part in (attention, feed_forward):
            part.out.weight.copy_(torch.tensordot(onto, part.out.weight, dims=1))
            part.out.weight[:, part.out.weight.shape[1] // 2 :] = 0.0
            if part.out.bias is not None:
                part.out.bias.copy_(onto @ part.out.bias)
            if part.out_norm is not None:  # unequal gains would leave the plane
                part.out_norm.set_gain(torch.full_like(part.out_norm.weight, 0.7))
        for affine, norm in ((attention.queries, attention.query_norm), (attention.keys, attention.key_norm)):
            if norm is not None and norm.weight.ndim == 2:
                affine.weight[len(affine.weight) // 2 :] = 0.0
    without_what_a_tied_embedding_can_not_hold(view)


@pytest.mark.parametrize("name", PRINCIPAL)
def test_a_teacher_that_uses_half_of_everything_is_projected_without_loss(tokens, name):
    teacher = family_model(PRINCIPAL[name])
    use_half(view_of(teacher))
    student = make_student(teacher, WIDTH // 2, init="principal", random_state=0, tokens=tokens)
    assert student.config.num_attention_heads == 2
    # The epsilon of OPT's normalizations can't be made negligible.
    assert_same_logits(student, teacher, tokens, atol=5e-3 if name == "opt" else 5e-4)


def test_what_is_added_after_unequal_gains_keeps_its_length_on_average(tokens):
    teacher = family_model(PRINCIPAL["gemma2"])
    student = make_student(teacher, WIDTH // 2, init="principal", random_state=0, tokens=tokens)
    found = []
    for model in (teacher, student):
        lengths = []
        for layer in model.model.layers:
            for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
                norm.register_forward_hook(lambda _, __, output, lengths=lengths: lengths.append(output.norm(dim=-1)))
        with torch.no_grad():
            model(torch.from_numpy(tokens))
        found.append(torch.stack([each.square().mean().sqrt() for each in lengths]))
    # A half of the directions carries less than all of them, and much more than a half.
    assert ((found[1] / found[0] > 0.5) & (found[1] / found[0] < 1.05)).all()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"do_layer_norm_before": False}, "do_layer_norm_before=False"),
        ({"word_embed_proj_dim": 16}, "word_embed_proj_dim"),
        ({"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine=False"),
        ({"enable_bias": False}, "needs biases in the attention"),
    ],
)
def test_variants_of_opt_that_can_not_be_projected_start_at_random(changes, reason):
    sizes = {"vocab_size": N_VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = OPTConfig(
        **{**sizes, "ffn_dim": 64, "word_embed_proj_dim": WIDTH, "max_position_embeddings": 32} | changes
    )
    teacher = family_model(config)
    assert not has_principal_start(teacher)
    with pytest.raises(ValueError, match=f"{reason}.*use init='random'"):
        make_student(teacher, 16, init="principal", tokens=np.zeros((2, 4), int))
    student = make_student(teacher, 8, random_state=0)
    assert student.get_input_embeddings().weight.shape[1] == 8
    assert student(torch.zeros((1, 3), dtype=torch.int64)).logits.isfinite().all()


def test_the_constant_of_value_biases_goes_to_the_value_biases_that_are_left(tokens):
    # Qwen2 has no output bias, and the dropped heads added a constant.
    losses = {}
    for kept in (True, False):
        teacher = family_model(PRINCIPAL["qwen2"])
        view = view_of(teacher)
        for attention, _ in view.blocks:
            attention.values.bias.mul_(3.0)
        student = make_student(teacher, WIDTH // 2, init="principal", random_state=0, tokens=tokens)
        if not kept:
            for attention, _ in view_of(student).blocks:
                attention.values.bias.data.zero_()
        ids = torch.from_numpy(tokens)
        with torch.no_grad():
            p, q = (torch.log_softmax(model(ids).logits, -1) for model in (teacher, student))
        losses[kept] = float((p.exp() * (p - q)).sum(-1).mean())
    assert losses[True] < 0.9 * losses[False]


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_a_final_bias_is_not_fitted_to_the_rounding_of_a_tied_embedding(tokens, name):
    # The embedding is centered, so its direction of equal dimensions holds nothing but rounding.
    teacher = family_model(PRINCIPAL[name])
    bias = view_of(make_student(teacher, WIDTH // 2, init="principal", random_state=0, tokens=tokens)).norm.bias
    assert bias.abs().max() < 10 * view_of(teacher).norm.bias.abs().max()


def test_blocks_without_rotation_have_no_frequencies_to_match():
    view = view_of(family_model(PRINCIPAL["smollm3"]))
    assert [len(attention.frequencies) for attention, _ in view.blocks] == [4, 0]
