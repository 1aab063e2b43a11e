import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from small_models import BLOCKS, N_VOCABULARY, WIDTH, gpt2, gpt_neox
from torch.nn import functional

from geofloor import SparseAutoencoder
from geofloor.datasets import load_teacher
from geofloor.features import _dictionary_sums
from geofloor.language_models import _dictionary_report, dictionary_report

LAYER = 1
pytestmark = pytest.mark.filterwarnings("ignore:autoencoder has the explained variance")


class Dictionary:
    """The `l0` largest rectified codes of each row, with random directions."""

    def __init__(self, width, n_latents, *, l0=4, sparse=True, scale=1.0, seed=0):
        rng = np.random.default_rng(seed)
        self.directions = rng.normal(size=(n_latents, width)) / np.sqrt(width)
        self.bias, self.l0, self.sparse, self.scale = rng.normal(size=width), l0, sparse, scale

    def transform(self, X):
        codes = np.maximum((X - self.bias) @ self.directions.T, 0.0)
        codes[codes < np.sort(codes, axis=1)[:, [-self.l0]]] = 0.0
        return sp.csr_array(codes) if self.sparse else codes

    def inverse_transform(self, codes):
        return self.scale * (codes @ self.directions) + self.bias


class Identity:
    def transform(self, X):
        return X.copy()

    def inverse_transform(self, codes):
        return codes


class Zero(Identity):
    def inverse_transform(self, codes):
        return np.zeros_like(codes)


def brute_force(model, block, tokens, dictionary, *, skip_first=1, lengths=None, excluded=()):
    """Compute the losses one sequence at a time, with the model's own forward pass and a plain hook."""
    lengths = np.full(len(tokens), tokens.shape[1]) if lengths is None else lengths
    sequences = [torch.tensor(row[:n])[None] for row, n in zip(tokens, lengths, strict=True)]
    states = {}
    included = [~np.isin(ids[0], excluded) for ids in sequences]

    def run(ids, change=None):
        at = ~np.isin(ids[0], excluded) & (np.arange(ids.shape[1]) >= skip_first)

        def hook(module, arguments, output):
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            states["last"] = hidden[0, at].double().numpy()
            if change is None:
                return None
            changed = hidden.clone()
            changed[0, at] = torch.tensor(change(states["last"]), dtype=hidden.dtype)
            return changed if isinstance(output, torch.Tensor) else (changed, *output[1:])

        handle = block.register_forward_hook(hook)
        with torch.no_grad():
            logits = model(ids).logits[0].double()
        handle.remove()
        return logits.log_softmax(-1)

    whole, rows = [], []
    for ids in sequences:
        whole.append(run(ids))
        rows.append(states["last"])
    rows = np.concatenate(rows)
    mean = rows.mean(axis=0)

    def reconstruct(x):
        return dictionary.inverse_transform(dictionary.transform(x.astype(np.float32)))

    changes = {"sae": reconstruct, "ablation": np.zeros_like, "mean_ablation": lambda x: np.broadcast_to(mean, x.shape)}
    expected, per_sequence = {}, {}
    kept = [p > -torch.inf for p in whole]
    for name, change in changes.items():
        others = [run(ids, change) for ids in sequences]
        kls = [(torch.where(k, p.exp() * (p - q), 0.0)).sum(-1) for p, q, k in zip(whole, others, kept, strict=True)]
        kls = [kl[at] for kl, at in zip(kls, included, strict=True)]
        per_sequence[name] = np.array([kl.sum().item() for kl in kls])
        expected[f"kl_div_with_{name}"] = torch.cat(kls).mean().item()
        expected[f"ce_loss_with_{name}"] = cross_entropy(others, sequences, included)
    expected["ce_loss_without_sae"] = cross_entropy(whole, sequences, included)
    codes = sp.csr_array(dictionary.transform(rows.astype(np.float32))).toarray()
    decoded = reconstruct(rows)
    expected |= {
        "l0": (codes != 0).sum(axis=1).mean(),
        "frac_alive": (codes != 0).any(axis=0).mean(),
        "freq_over_1_percent": ((codes != 0).mean(axis=0) > 0.01).mean(),
        "freq_over_10_percent": ((codes != 0).mean(axis=0) > 0.1).mean(),
        "explained_variance": 1 - ((rows - decoded) ** 2).sum() / ((rows - mean) ** 2).sum(),
        "l2_ratio": (np.linalg.norm(decoded, axis=1) / np.linalg.norm(rows, axis=1)).mean(),
        "n_tokens": len(rows),
    }
    return expected, per_sequence


def cross_entropy(log_probabilities, sequences, included):
    all_of_them = zip(log_probabilities, sequences, included, strict=True)
    losses = [functional.nll_loss(p[:-1], ids[0, 1:], reduction="none")[at[:-1]] for p, ids, at in all_of_them]
    return torch.cat(losses).mean().item()


def assert_measured(report, expected):
    for name, value in expected.items():
        assert getattr(report, name) == pytest.approx(value, rel=2e-4, abs=2e-6), name
    lost = report.kl_div_with_sae / report.kl_div_with_ablation
    assert report.kl_div_score == pytest.approx(1 - lost)
    assert report.kl_div_score_above_mean == pytest.approx(
        1 - report.kl_div_with_sae / report.kl_div_with_mean_ablation
    )
    raised = report.ce_loss_with_ablation - report.ce_loss_without_sae
    if raised > 0:
        recovered = (report.ce_loss_with_ablation - report.ce_loss_with_sae) / raised
        assert report.ce_loss_score == pytest.approx(recovered)
    else:  # as on random tokens
        assert np.isnan([report.ce_loss_score, report.ce_loss_score_error]).all()


def test_losses_on_the_embedded_teacher_are_those_of_its_own_forward_pass():
    teacher = load_teacher()
    text = 40 * "def add(first, second):\n    return first + second\n\nfor name in names:\n    print(name)\n"
    tokens = np.array(teacher.tokenizer(text)["input_ids"])[:192].reshape(6, 32)
    dictionary = Dictionary(128, 256, l0=16, seed=1)
    report = dictionary_report(teacher.path, 2, dictionary, tokens, batch_size=4, device="cpu")
    expected, per_sequence = brute_force(teacher.model, teacher.model.gpt_neox.layers[2], tokens, dictionary)
    assert_measured(report, expected)
    assert report.kl_div_with_sae_error == pytest.approx(
        (per_sequence["sae"] / 32).std(ddof=1) / np.sqrt(len(tokens)), rel=1e-3
    )
    assert np.isfinite(report.ce_loss_score)
    assert (report.layer, report.n_latents, report.n_sequences) == (2, 256, 6)


@pytest.mark.parametrize("make", [gpt_neox, gpt2])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("skip_first", [0, 2])
def test_losses_of_small_models_in_pieces(make, sparse, skip_first, monkeypatch):
    monkeypatch.setattr(_dictionary_sums, "_CODES_AT_A_TIME", 100)
    model, dictionary = make(), Dictionary(WIDTH, 24, sparse=sparse)
    block = model.gpt_neox.layers[LAYER] if make is gpt_neox else model.transformer.h[LAYER]
    expected, _ = brute_force(model, block, BLOCKS, dictionary, skip_first=skip_first)
    assert_measured(dictionary_report(model, LAYER, dictionary, BLOCKS, skip_first=skip_first, batch_size=3), expected)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_excluded_tokens_are_neither_replaced_nor_counted(batch_size):
    model, dictionary = gpt_neox(), Dictionary(WIDTH, 24)
    tokens = BLOCKS.copy()
    tokens[4], excluded = 3, [3, *range(20, 30)]  # nothing is left of the fifth sequence
    expected, _ = brute_force(model, model.gpt_neox.layers[LAYER], tokens, dictionary, excluded=excluded)
    assert 0 < expected["n_tokens"] < 90
    report = dictionary_report(model, LAYER, dictionary, tokens, exclude_tokens=excluded, batch_size=batch_size)
    assert_measured(report, expected)
    with pytest.raises(ValueError, match="exclude_tokens leaves no position of any sequence"):
        dictionary_report(model, LAYER, dictionary, tokens, exclude_tokens=range(N_VOCABULARY))


@pytest.mark.parametrize("output", ["mlp", "attention"])
def test_outputs_of_modules_are_replaced_where_they_are_given(output):
    model, dictionary = gpt_neox(), Dictionary(WIDTH, 24)
    module = model.gpt_neox.layers[LAYER].get_submodule(output)
    expected, _ = brute_force(model, module, BLOCKS, dictionary)
    report = dictionary_report(model, LAYER, dictionary, BLOCKS, output=output, batch_size=3)
    assert_measured(report, expected)
    assert (report.layer, report.output) == (LAYER, output)


def test_dictionaries_of_other_activations_are_noticed():
    model = gpt_neox()
    with pytest.warns(
        UserWarning, match=r"explained variance -.*e\+03 on the first 80 activations of 'layers.1'"
    ) as caught:
        dictionary_report(model, LAYER, Dictionary(WIDTH, 24), BLOCKS)
    (found,) = caught
    assert "not trained on these activations: layer? hook? model? normalization?" in str(found.message)
    assert found.filename == __file__
    good = Identity()
    good.source_ = {"format": "saelens", "model": "gpt2", "hook": "blocks.1.hook_mlp_out"}
    with pytest.warns(UserWarning, match=r"hook='blocks.1.hook_mlp_out' \(layer=1, output='mlp'\).*of 'layers.1'"):
        dictionary_report(model, LAYER, good, BLOCKS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dictionary_report(model, LAYER, good, BLOCKS, output="mlp")


@pytest.mark.parametrize("batch_size", [1, 4])  # with 1, the batch of the seventh sequence has nothing to replace
def test_padding_does_not_count(batch_size):
    lengths = np.array([11, 4, 7, 2, 11, 5, 1, 9, 3, 6])
    padded = np.where(np.arange(11) < lengths[:, np.newaxis], BLOCKS, 0)
    model, dictionary = gpt_neox(), Dictionary(WIDTH, 24)
    expected, per_sequence = brute_force(model, model.gpt_neox.layers[LAYER], padded, dictionary, lengths=lengths)
    report = dictionary_report(model, LAYER, dictionary, padded, pad_token_id=0, batch_size=batch_size)
    assert_measured(report, expected)
    # The error of a ratio of sums, leaving out one sequence at a time.
    total, n = per_sequence["sae"], len(lengths)
    left_out = (total.sum() - total) / (lengths.sum() - lengths)
    jackknife = np.sqrt((n - 1) / n * np.square(left_out - left_out.mean()).sum())
    assert report.kl_div_with_sae_error == pytest.approx(jackknife, rel=0.2)


def with_masked_token(model):
    """Give a model logits of −inf for its last token."""
    head = torch.nn.Linear(WIDTH, N_VOCABULARY)
    with torch.no_grad():
        head.weight.copy_(model.get_output_embeddings().weight)
        head.bias.zero_()
        head.bias[-1] = -torch.inf
    model.set_output_embeddings(head)
    return model.eval()


def test_masked_logits_lose_nothing_and_masked_tokens_are_refused():
    tokens = np.minimum(BLOCKS, N_VOCABULARY - 2)
    model, dictionary = with_masked_token(gpt_neox()), Dictionary(WIDTH, 24)
    expected, _ = brute_force(model, model.gpt_neox.layers[LAYER], tokens, dictionary)
    assert_measured(dictionary_report(model, LAYER, dictionary, tokens), expected)
    tokens[3, 5] = N_VOCABULARY - 1
    with pytest.raises(ValueError, match=r"not finite on tokens; .* leave out text with tokens of logit −inf"):
        dictionary_report(model, LAYER, dictionary, tokens)


def test_a_perfect_dictionary_loses_nothing_and_one_of_zeros_all():
    perfect = dictionary_report(gpt_neox(), LAYER, Identity(), BLOCKS)
    assert perfect.kl_div_with_sae == pytest.approx(0.0, abs=1e-6)
    assert perfect.kl_div_score == pytest.approx(1.0, abs=1e-4)
    assert perfect.kl_div_score_above_mean == pytest.approx(1.0, abs=1e-4)
    assert perfect.ce_loss_with_sae == perfect.ce_loss_without_sae
    assert perfect.explained_variance == perfect.l2_ratio == perfect.relative_reconstruction_bias == 1.0
    assert perfect.centered_reconstruction_bias == 1.0
    assert (perfect.l0, perfect.frac_alive, perfect.max_decoder_cosine_sim) == (WIDTH, 1.0, 0.0)
    zero = dictionary_report(gpt_neox(), LAYER, Zero(), BLOCKS)
    assert zero.kl_div_with_sae == zero.kl_div_with_ablation > 0.0
    assert zero.ce_loss_with_sae == zero.ce_loss_with_ablation
    assert zero.kl_div_score == zero.l2_ratio == 0.0
    assert np.isnan(zero.relative_reconstruction_bias)


def test_duplicates_and_dead_latents_of_a_trained_dictionary():
    model = gpt_neox()
    autoencoder = SparseAutoencoder(12, l0=3, n_epochs=1, batch_size=20, random_state=0)
    rows = _dictionary_report.ActivationExtractor(model, LAYER).transform(BLOCKS)
    with pytest.warns(UserWarning, match="not to be trusted"):
        autoencoder.fit(rows)
    codes = autoencoder.transform(rows).toarray()
    alive = np.flatnonzero(codes.any(axis=0))
    report = dictionary_report(model, LAYER, autoencoder, BLOCKS)
    directions = autoencoder.decoder_[alive].astype(np.float64)
    cosines = directions @ directions.T - 2 * np.eye(len(alive))
    assert report.max_decoder_cosine_sim == pytest.approx(cosines.max(), abs=1e-5)
    assert report.average_max_decoder_cosine_sim == pytest.approx(cosines.max(axis=1).mean(), abs=1e-5)
    first, second = np.searchsorted(alive, report.closest_latents)
    assert cosines[first, second] == pytest.approx(cosines.max(), abs=1e-5)
    assert report.frac_alive == len(alive) / 12
    assert report.explained_variance == pytest.approx(autoencoder.score(rows), abs=1e-5)


def test_a_dictionary_of_one_direction_has_no_two_to_compare():
    report = dictionary_report(gpt_neox(), LAYER, Dictionary(WIDTH, 1, l0=1), BLOCKS)
    assert np.isnan([report.max_decoder_cosine_sim, report.average_max_decoder_cosine_sim]).all()
    assert report.closest_latents is None


def test_negative_layers_and_teachers_by_path_give_the_same(tmp_path):
    model, dictionary = gpt_neox(), Dictionary(WIDTH, 24)
    model.save_pretrained(tmp_path)
    report = dictionary_report(model, LAYER, dictionary, BLOCKS)
    assert dictionary_report(tmp_path, LAYER - 3, dictionary, torch.from_numpy(BLOCKS)) == report
    bfloat16 = dictionary_report(tmp_path, LAYER, dictionary, BLOCKS, model_kwargs={"dtype": "bfloat16"})
    assert bfloat16.kl_div_with_ablation == pytest.approx(report.kl_div_with_ablation, rel=0.2)


def test_the_teacher_is_left_as_it_was():
    model = gpt_neox().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    class Failing(Identity):
        def inverse_transform(self, codes):
            return 1 / 0 if len(codes) > 2 else codes

    with pytest.raises(ZeroDivisionError):
        dictionary_report(model, LAYER, Failing(), BLOCKS)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frames_hold_the_measures():
    report = dictionary_report(gpt_neox(), LAYER, Dictionary(WIDTH, 24), BLOCKS)
    frame = report.frame().set_index("metric")
    for name, value in dataclasses.asdict(report).items():
        if name in ("closest_latents", "output"):
            continue
        if name.endswith("_error"):
            assert frame.standard_error[name.removesuffix("_error")] == value
        else:
            assert frame.value[name] == value
    wide = pd.DataFrame([report, report])
    assert wide.shape == (2, len(dataclasses.fields(report)))


class Unused(Identity):
    """A dictionary that must not be called."""

    def transform(self, X):
        raise AssertionError("called")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"autoencoder": None}, TypeError, "autoencoder=None is a NoneType without transform and inverse_transform"),
        ({"autoencoder": PCA}, TypeError, "without transform and inverse_transform"),
        ({"autoencoder": PCA(4)}, NotFittedError, "PCA instance is not fitted"),
        ({"autoencoder": PCA(2).fit(np.eye(5))}, ValueError, "autoencoder was fitted on activations of width 5.* 16"),
        ({"autoencoder": Dictionary(5, 24)}, ValueError, "autoencoder=.* can't reconstruct activations of width 16"),
        ({"layer": 3}, ValueError, "layer=3"),
        ({"layer": 0.5}, ValueError, "layer=0.5"),
        ({"output": "heads"}, ValueError, "output='heads' is unknown"),
        ({"teacher": torch.nn.Linear(2, 2)}, TypeError, "teacher="),
        ({"teacher": None}, ValueError, "teacher=None"),
        ({"tokens": BLOCKS + N_VOCABULARY}, ValueError, "tokens holds the token id"),
        ({"tokens": BLOCKS[:0]}, ValueError, "tokens is empty"),
        ({"tokens": BLOCKS[0]}, ValueError, "tokens has shape"),
        ({"skip_first": 11}, ValueError, "skip_first=11 leaves nothing of sequences of 11 tokens"),
        ({"skip_first": -1}, ValueError, "skip_first=-1"),
        ({"exclude_tokens": "special"}, ValueError, "exclude_tokens='special' needs .* the teacher is an object"),
        ({"exclude_tokens": [N_VOCABULARY]}, ValueError, "exclude_tokens=40 must be .* at most 39"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"pad_token_id": "0"}, ValueError, "pad_token_id='0'"),
        ({"model_kwargs": {"dtype": "float32"}}, ValueError, "model_kwargs="),
        ({"device": "tpu0"}, ValueError, "device='tpu0'"),
        ({"verbose": "loud"}, ValueError, "verbose='loud'"),
    ],
)
def test_wrong_arguments_are_refused_by_name_before_the_teacher_runs_on_all_tokens(arguments, error, message):
    given = {
        "teacher": gpt_neox(),
        "layer": LAYER,
        "autoencoder": Unused(),
        "tokens": BLOCKS,
        "batch_size": 1,
        **arguments,
    }
    calls = []
    if isinstance(given["teacher"], type(gpt_neox())):
        given["teacher"].gpt_neox.layers[0].register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(error, match=message):
        dictionary_report(**given)
    assert len(calls) <= 6  # probes of the model, and one batch of the ten


def test_losses_that_are_not_finite_are_refused():
    class Infinite(Identity):
        def inverse_transform(self, codes):
            return codes * np.inf

    with pytest.raises(ValueError, match="autoencoder gave reconstructions that are not finite"):
        dictionary_report(gpt_neox(), LAYER, Infinite(), BLOCKS)
    model = gpt_neox()
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = torch.nan
    with pytest.raises(ValueError, match="loss of the teacher is not finite on tokens"):
        dictionary_report(model, LAYER, Identity(), BLOCKS)
