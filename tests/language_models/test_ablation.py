import warnings

import numpy as np
import pytest
import torch
from scipy.interpolate import PchipInterpolator
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from geofloor import (
    AblationPredictor,
    ActivationExtractor,
    AffineCalibrator,
    FeatureStatistics,
    LossForecaster,
    SparseAutoencoder,
)
from geofloor.features import OutlierRowsWarning
from geofloor.forecasting import Calibrated
from geofloor.language_models import dictionary_report

LAYER = 1


def gpt_neox(seed=0):
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=12, initializer_range=0.3,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=3, n_head=2, n_positions=12, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def teacher():
    return gpt_neox()


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(32, size=(20, 12))


@pytest.fixture(scope="module")
def activations(teacher, tokens):
    return ActivationExtractor(teacher, LAYER).transform(tokens)


@pytest.fixture(scope="module")
def autoencoder(activations):
    return SparseAutoencoder.paper(
        64, l1_coefficient=0.6, learning_rate=1e-2, batch_size=55, n_epochs=60, normalization="mean_norm",
        random_state=0,
    ).fit(activations)  # fmt: skip


@pytest.fixture(scope="module")
def statistics(autoencoder, activations):
    return FeatureStatistics().fit(autoencoder.transform(activations))


class Foreign:
    """A dictionary of another library: dense codes, and neither `decoder_` nor scikit-learn."""

    def __init__(self, autoencoder):
        self.autoencoder = autoencoder

    def transform(self, X):
        return self.autoencoder.transform(X).toarray()

    def inverse_transform(self, codes):
        return torch.from_numpy(self.autoencoder.inverse_transform(codes))


def loss_of(teacher, blocks, tokens, change, temperature):
    """Compute the KL of the ablated from the intact teacher, by torch's loss on all logits."""
    ids = torch.from_numpy(tokens)

    def hook(module, arguments, output):
        states = output if isinstance(output, torch.Tensor) else output[0]
        changed = states.clone()
        changed[:, 1:] = torch.from_numpy(change(states[:, 1:].reshape(-1, 16).numpy())).reshape(len(ids), -1, 16)
        return changed if isinstance(output, torch.Tensor) else (changed, *output[1:])

    with torch.no_grad():
        whole = teacher(ids).logits
        handle = blocks[LAYER].register_forward_hook(hook)
        ablated = teacher(ids).logits
        handle.remove()
    log_p, log_q = ((each / temperature).log_softmax(-1) for each in (whole, ablated))
    return functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean(dim=1).double().numpy()


@pytest.mark.parametrize("make", [gpt_neox, gpt2])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_components_are_those_of_pca_and_the_loss_is_torchs(make, tokens, temperature):
    model = make()
    blocks = model.gpt_neox.layers if make is gpt_neox else model.transformer.h
    predictor = AblationPredictor(model, LAYER, temperature=temperature, n_points=16, batch_size=7).fit(tokens)
    pca = PCA().fit(ActivationExtractor(model, LAYER).transform(tokens))
    for row in predictor.curve_.itertuples():
        kept = pca.components_[: row.kept]

        def change(states, kept=kept):
            return (pca.mean_ + (states - pca.mean_) @ kept.T @ kept).astype(np.float32)

        losses = loss_of(model, blocks, tokens, change, temperature)
        assert row.kl == pytest.approx(losses.mean(), abs=2e-5)
        assert row.standard_error == pytest.approx(losses.std(ddof=1) / np.sqrt(len(losses)), abs=1e-5)
    assert predictor.curve_.kl[0] > 0.05
    assert (predictor.n_features_, predictor.capacity_, predictor.critical_width_) == (16, 1.0, 16.0)


def test_latents_are_dropped_in_the_order_of_importance_and_leave_their_means(teacher, tokens, autoencoder, statistics):
    predictor = AblationPredictor(teacher, LAYER, autoencoder, statistics, n_points=12).fit(tokens)
    importance, means = statistics.table_[:, 0], statistics.table_[:, 2]
    order = np.argsort(-importance, kind="stable")
    for row in predictor.curve_.itertuples():
        dropped = order[row.kept :]

        def change(states, dropped=dropped):
            codes = autoencoder.transform(states).toarray()
            ablated = codes.copy()
            ablated[:, statistics.alive_[dropped]] = means[dropped]
            difference = autoencoder.inverse_transform(codes) - autoencoder.inverse_transform(ablated)
            return (states - difference).astype(np.float32)

        losses = loss_of(teacher, teacher.gpt_neox.layers, tokens, change, 2.0)
        assert row.kl == pytest.approx(losses.mean(), abs=2e-5)
    assert predictor.alpha_ == statistics.alpha_
    assert predictor.n_features_ == statistics.n_alive_
    assert predictor.critical_width_ == pytest.approx(statistics.critical_width_)
    widths = [0, 1, 2.5, 4, 1000]
    assert predictor.kept_features(widths).tolist() == [
        min(int(width * predictor.capacity_), predictor.n_features_) for width in widths
    ]


@pytest.mark.parametrize("output", ["mlp", "attention"])
def test_features_of_a_module_are_removed_from_its_output(teacher, tokens, output):
    predictor = AblationPredictor(teacher, LAYER, output=output, n_points=5, batch_size=7).fit(tokens)
    pca = PCA().fit(ActivationExtractor(teacher, LAYER, output=output).transform(tokens))
    for row in predictor.curve_.itertuples():
        kept = pca.components_[: row.kept]

        def change(states, kept=kept):
            return (pca.mean_ + (states - pca.mean_) @ kept.T @ kept).astype(np.float32)

        losses = loss_of(teacher, {LAYER: teacher.gpt_neox.layers[LAYER].get_submodule(output)}, tokens, change, 2.0)
        assert row.kl == pytest.approx(losses.mean(), abs=2e-5)
    assert predictor.curve_.kl[0] > 1e-3


def test_dictionaries_of_other_libraries_give_the_same(teacher, tokens, autoencoder, statistics):
    for given in ((), (statistics,)):
        own = AblationPredictor(teacher, LAYER, autoencoder, *given, n_points=5).fit(tokens)
        foreign = AblationPredictor(teacher, LAYER, Foreign(autoencoder), *given, n_points=5).fit(tokens)
        np.testing.assert_allclose(foreign.curve_, own.curve_, rtol=1e-4, atol=1e-6)
        assert foreign.alpha_ == pytest.approx(own.alpha_)


def test_dictionaries_of_other_activations_are_noticed(teacher, tokens, autoencoder, statistics):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AblationPredictor(teacher, LAYER, autoencoder, statistics, n_points=3).fit(tokens)
    shifted = Foreign(autoencoder)
    shifted.inverse_transform = lambda codes: autoencoder.inverse_transform(codes) + 10.0
    with pytest.warns(UserWarning, match="not trained on these activations: layer. hook. model. normalization."):
        AblationPredictor(teacher, LAYER, shifted, statistics, n_points=3).fit(tokens)
    named = Foreign(autoencoder)
    named.source_ = {"format": None, "model": None, "hook": "blocks.1.hook_resid_pre"}
    with pytest.warns(UserWarning, match="hook='blocks.1.hook_resid_pre'.*these are activations of 'layers.1'"):
        AblationPredictor(teacher, LAYER, named, statistics, n_points=3).fit(tokens)


def test_predictions_meet_what_was_measured_and_never_rise(teacher, tokens):
    predictor = AblationPredictor(teacher, LAYER, n_points=6).fit(tokens)
    lowest = np.minimum.accumulate(predictor.curve_.kl)
    np.testing.assert_allclose(predictor.predict(predictor.curve_.kept), np.maximum(lowest, 0.0), atol=1e-12)
    floors = predictor.predict(np.linspace(0, 20, 200))
    assert (np.diff(floors) <= 1e-12).all()
    assert floors[-1] == pytest.approx(0.0, abs=1e-6)


def test_statistics_are_measured_on_the_tokens_where_none_are_given(teacher, tokens, autoencoder, statistics):
    given = AblationPredictor(teacher, LAYER, autoencoder, statistics, n_points=4).fit(tokens)
    measured = AblationPredictor(teacher, LAYER, autoencoder, n_points=4).fit(tokens)
    assert measured.alpha_ == pytest.approx(given.alpha_)
    np.testing.assert_allclose(measured.curve_.kl, given.curve_.kl, atol=1e-5)


def test_losses_above_that_of_the_teachers_own_width(teacher, tokens, autoencoder, statistics):
    settings = {"capacity": lambda alpha: 1.0, "n_points": 6}  # features outnumber the teacher's 16 dimensions
    plain = AblationPredictor(teacher, LAYER, autoencoder, statistics, **settings).fit(tokens)
    above = AblationPredictor(teacher, LAYER, autoencoder, statistics, above_own_width=True, **settings).fit(tokens)
    widths = np.arange(40)
    floors = above.predict(widths)
    np.testing.assert_allclose(floors[:17], (plain.predict(widths) - plain.predict([16]))[:17])
    assert plain.own_width_loss_ == above.own_width_loss_ == plain.predict([16])[0] > 0.01
    assert not floors[16:].any()
    assert plain.predict([20])[0] > 0
    assert above.min_width(0.0) == 16
    assert (plain.critical_width_, above.critical_width_) == (statistics.n_alive_, 16)
    components = AblationPredictor(teacher, LAYER, above_own_width=True, n_points=6).fit(tokens)
    assert components.critical_width_ == 16.0


def test_the_smallest_width_is_the_first_that_reaches_the_target(teacher, tokens):
    predictor = AblationPredictor(teacher, LAYER).fit(tokens)
    floors = predictor.predict(np.arange(17))
    for target in (floors[0], 0.5 * floors[0], floors[5]):
        assert predictor.min_width(target) == np.argmax(floors <= target)
    assert predictor.min_width([floors[3], floors[9]]).tolist() == [3, 9]


def test_the_teacher_is_left_as_it_was(tokens, autoencoder, monkeypatch):
    model = gpt_neox().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    AblationPredictor(model, LAYER, n_points=3).fit(tokens)
    monkeypatch.setattr(SparseAutoencoder, "transform", lambda self, X: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        AblationPredictor(model, LAYER, autoencoder, n_points=3).fit(tokens)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_teacher_by_path_gives_the_same(teacher, tokens, tmp_path):
    teacher.save_pretrained(tmp_path)
    by_path = AblationPredictor(tmp_path, LAYER, n_points=4).fit(tokens)
    np.testing.assert_array_equal(by_path.curve_, AblationPredictor(teacher, LAYER, n_points=4).fit(tokens).curve_)


def test_it_stands_before_calibrators(teacher, tokens):
    predictor = AblationPredictor(teacher, LAYER).fit(tokens)
    widths = np.array([2, 4, 8, 12])
    observed = 0.8 * predictor.predict(widths) + 0.01
    for forecast in (
        make_pipeline(FrozenEstimator(predictor), AffineCalibrator()),
        LossForecaster(Calibrated(predictor)),
    ):
        forecast.fit(widths, observed)
        np.testing.assert_allclose(forecast.predict([3, 10]), 0.8 * predictor.predict([3, 10]) + 0.01)
    with pytest.raises(ValueError, match="AblationPredictor is fitted on one kind of data"):
        predictor.fit_transform(tokens)


def test_clones_share_what_is_never_changed(teacher, autoencoder, statistics):
    cloned = clone(AblationPredictor(teacher, LAYER, autoencoder, statistics, n_points=5))
    assert cloned.teacher is teacher
    assert cloned.autoencoder is autoencoder
    assert cloned.statistics is statistics
    assert cloned.n_points == 5


def test_small_integers_of_numpy_do_not_wrap(teacher, tokens):
    plain = AblationPredictor(teacher, LAYER, n_points=5, batch_size=2).fit(tokens)
    small = AblationPredictor(
        teacher, np.int8(LAYER), n_points=np.int8(5), batch_size=np.int8(2), skip_first=np.uint8(1)
    ).fit(torch.from_numpy(tokens.astype(np.int8)))
    assert small.curve_.equals(plain.curve_)


def test_floors_are_never_below_zero(teacher, tokens):
    predictor = AblationPredictor(teacher, LAYER, n_points=5).fit(tokens)
    # This curve ends at -1.3e-21 instead of 0.
    losses = [
        0.02735667512595192,
        0.004997929404140088,
        0.001849239008202986,
        0.000454150207373917,
        9.151731054767985e-06,
        0,
    ]
    predictor._interpolate = PchipInterpolator(np.log1p([0, 1, 5, 9, 13, 16]), losses)
    assert predictor._interpolate(np.log1p(16)) < 0
    assert (predictor.predict(np.linspace(0, 20, 2001)) >= 0).all()


def test_the_floor_is_zero_from_the_critical_width_on(teacher, tokens):
    predictor = AblationPredictor(teacher, LAYER, n_points=5).fit(tokens)
    # The divergence of the whole teacher from itself may be above 0 by rounding.
    predictor._interpolate = PchipInterpolator(np.log1p(predictor.curve_.kept), predictor.curve_.kl + 1e-9)
    assert predictor.predict([predictor.critical_width_ - 1])[0] > 0
    assert not predictor.predict([predictor.critical_width_, 1e6]).any()


def test_targets_that_width_zero_meets_need_width_zero(teacher, tokens):
    predictor = AblationPredictor(teacher, LAYER, n_points=5).fit(tokens)
    assert predictor.min_width([0.0, 100.0]).tolist() == [predictor.min_width(0.0), 0]


def test_padding_with_an_end_token_is_noticed(teacher, tokens):
    end = teacher.config.eos_token_id
    padded = tokens.copy()
    padded[:, -3:] = end
    with pytest.warns(UserWarning, match="end with a run") as caught:
        AblationPredictor(teacher, LAYER, n_points=3).fit(padded)
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith(
        f"tokens: {len(tokens)} of {len(tokens)} sequences begin or end with a run of token {end}"
    )
    assert message.endswith(f"set pad_token_id={end}.")


def test_padding_does_not_count(teacher, tokens, autoencoder, statistics):
    end = teacher.config.eos_token_id
    real = np.where(tokens == end, end + 1, tokens)
    padded = real.copy()
    padded[:, 7:] = end
    for features in ((), (autoencoder, statistics), (autoencoder,)):
        short = AblationPredictor(teacher, LAYER, *features, n_points=4).fit(real[:, :7])
        found = AblationPredictor(teacher, LAYER, *features, n_points=4, pad_token_id=end).fit(padded)
        np.testing.assert_allclose(found.curve_, short.curve_, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="skip_first=7 leaves nothing of sequences of 7 tokens"):
        AblationPredictor(teacher, LAYER, skip_first=7, pad_token_id=end).fit(padded)
    with pytest.raises(ValueError, match="skip_first=7 leaves nothing of sequences of 7 tokens"):
        AblationPredictor(teacher, LAYER, autoencoder, statistics, skip_first=7, pad_token_id=end).fit(padded)
    uneven = real.copy()
    uneven[::2, 5:] = end
    predictor = AblationPredictor(teacher, LAYER, autoencoder, statistics, n_points=4, pad_token_id=end).fit(uneven)
    halves = [
        AblationPredictor(teacher, LAYER, autoencoder, statistics, n_points=4).fit(part)
        for part in (real[::2, :5], real[1::2])
    ]
    weights = [real[::2, :5].size, real[1::2].size]
    expected = np.average([half.curve_.kl for half in halves], axis=0, weights=weights)
    np.testing.assert_allclose(predictor.curve_.kl, expected, rtol=1e-4, atol=1e-6)


def test_excluded_tokens_are_neither_ablated_nor_counted(teacher, tokens, autoencoder, statistics):
    text = np.minimum(tokens, 28)
    longer = text.copy()
    longer[:, 9:] = 31
    longer[::3, 9:11] = 29  # the model is causal: later tokens change nothing before them
    for features in ((), (autoencoder, statistics), (autoencoder,)):
        short = AblationPredictor(teacher, LAYER, *features, n_points=4).fit(text[:, :9])
        found = AblationPredictor(teacher, LAYER, *features, n_points=4, exclude_tokens=[31, 29]).fit(longer)
        np.testing.assert_allclose(found.curve_, short.curve_, rtol=1e-4, atol=1e-6)
    nothing = AblationPredictor(teacher, LAYER, n_points=3, batch_size=1, exclude_tokens=range(1, 32))
    with pytest.raises(ValueError, match="exclude_tokens leaves no position of any sequence"):
        nothing.fit(np.maximum(tokens, 1))
    one = np.maximum(tokens, 1)
    one[0, 3:] = 0
    assert np.isfinite(nothing.fit(one).curve_.kl).all()


def test_an_infinite_loss_names_its_cause(tokens, monkeypatch):
    model = gpt_neox()
    forward = model.forward

    def masked(*arguments, **options):  # all but the likeliest tokens, which depend on the hidden states
        output = forward(*arguments, **options)
        lowest = output.logits.topk(5).values[..., -1:]
        output.logits = output.logits.masked_fill(output.logits < lowest, -torch.inf)
        return output

    monkeypatch.setattr(model, "forward", masked)
    with pytest.raises(ValueError, match=r"teacher is not finite; .* logit −inf, probability 0, .* n_vocabulary"):
        AblationPredictor(model, LAYER, n_points=3).fit(tokens)


@pytest.mark.parametrize("measure", ["ablation", "report"])
def test_a_few_dominating_activations_are_noticed(tokens, measure):
    model = gpt_neox()
    text = np.random.default_rng(1).integers(31, size=(200, 12))
    text[[3, 150], [5, 8]] = 31  # a sink in the middle of sequences
    with torch.no_grad():
        model.gpt_neox.embed_in.weight[31] *= 300

    def run(**options):
        if measure == "ablation":
            return AblationPredictor(model, LAYER, n_points=3, batch_size=50, **options).fit(text)
        components = PCA(4).fit(ActivationExtractor(model, LAYER, **options).transform(text))
        return dictionary_report(model, LAYER, components, text, batch_size=50, **options)

    with pytest.warns(OutlierRowsWarning, match=r"3 of 2,200 activations carry \d\d% .* exclude_tokens") as caught:
        run()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(exclude_tokens=[31])


def test_later_positions_see_excluded_tokens(teacher, tokens):
    others = np.where(tokens == 7, 8, tokens)
    curves = [
        AblationPredictor(teacher, LAYER, n_points=3, exclude_tokens=[7, 8]).fit(each).curve_
        for each in (tokens, others)
    ]
    assert not np.allclose(curves[0].kl, curves[1].kl, rtol=1e-5)


@pytest.mark.parametrize("above_own_width", [False, True])
def test_the_interval_holds_the_loss_over_all_text_as_often_as_it_says(
    teacher, autoencoder, statistics, above_own_width
):
    text = np.random.default_rng(5).integers(32, size=(1200, 11))
    predictor = AblationPredictor(
        teacher, LAYER, autoencoder, statistics, n_points=12, batch_size=64, capacity=lambda alpha: 1.0,
        above_own_width=above_own_width,
    )  # fmt: skip
    right = clone(predictor).fit(text).predict([2, 9])
    inside = []
    for part in np.split(text, 40):
        floors, interval = predictor.fit(part).predict([2, 9], return_interval=True, level=0.8)
        np.testing.assert_array_equal(floors, predictor.predict([2, 9]))
        inside.append((interval[:, 0] <= right) & (right <= interval[:, 1]))
    assert (np.abs(np.mean(inside, axis=0) - 0.8) < 0.15).all()
    if not above_own_width:
        floors, interval = predictor.predict(predictor.curve_.kept[:-1], return_interval=True, level=0.9)
        errors = (interval[:, 1] - floors) / 1.6448536
        np.testing.assert_allclose(errors, predictor.curve_.standard_error[:-1], rtol=1e-6)
    _, interval = predictor.predict([0, predictor.critical_width_], return_interval=True)
    assert (np.diff(interval) > 0).ravel().tolist() == [True, False]


def test_an_interval_needs_two_sequences(teacher, tokens):
    predictor = AblationPredictor(teacher, LAYER, n_points=3).fit(tokens[:1])
    assert predictor.predict([0])[0] > 0
    with pytest.raises(ValueError, match="return_interval=True needs a standard error"):
        predictor.predict([0], return_interval=True)
    with pytest.raises(ValueError, match=r"level=1.0 must be a finite number .* below 1"):
        predictor.predict([0], level=1.0)


def test_bad_input_is_named(teacher, tokens, autoencoder, statistics):
    def fit(*arguments, data=tokens, **settings):
        return AblationPredictor(teacher, *arguments, **settings).fit(data)

    with pytest.raises(ValueError, match="layer=7 is not there"):
        fit(7)
    with pytest.raises(ValueError, match=r"layer=\[0, 1\] must be a whole number"):
        fit([0, 1])
    with pytest.raises(ValueError, match="n_points=1 must be a whole number of at least 2"):
        fit(LAYER, n_points=1)
    with pytest.raises(ValueError, match="temperature=0"):
        fit(LAYER, temperature=0)
    with pytest.raises(ValueError, match="autoencoder=None; give both or none"):
        fit(LAYER, None, statistics)
    with pytest.raises(ValueError, match="token id 32, outside"):
        fit(LAYER, data=np.full((2, 5), 32))

    def other(n_latents, width):
        data = np.random.default_rng(0).random((64, width))
        return SparseAutoencoder(n_latents, batch_size=16, n_epochs=1, random_state=0).fit(data)

    narrow = other(12, 8)
    with pytest.raises(ValueError, match="width 8, and the teacher's are 16 wide"):
        fit(LAYER, narrow, FeatureStatistics().fit(narrow.transform(np.ones((9, 8)))))
    with pytest.raises(ValueError, match="and autoencoder has 4"):
        fit(LAYER, other(4, 16), statistics)
    for wrong in (3, torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match="teacher=.* is a .*; give a transformers model"):
            AblationPredictor(wrong, LAYER).fit(tokens)
    stretched = clone(autoencoder).fit(np.random.default_rng(0).random((64, 16)))
    stretched.decoder_ = 0.1 * stretched.decoder_
    with pytest.raises(ValueError, match="autoencoder has decoder_ directions of norm 0.1 to 0.1"):
        fit(LAYER, stretched, statistics)
    for name, wrong in (("autoencoder", 3), ("autoencoder", statistics), ("statistics", autoencoder)):
        with pytest.raises(TypeError, match=f"{name}.* is a .*; give a fitted"):
            fit(LAYER, **{"autoencoder": autoencoder, name: wrong})
    with pytest.raises(TypeError, match="model_kwargs=3 is a int; give a dict"):
        fit(LAYER, model_kwargs=3)
    with pytest.raises(NotFittedError):
        fit(LAYER, SparseAutoencoder(4))
    with pytest.raises(ValueError, match="above_own_width='x' must be True or False"):
        fit(LAYER, above_own_width="x")
    with pytest.raises(ValueError, match=f"skip_first={tokens.shape[1]} leaves nothing of sequences"):
        fit(LAYER, autoencoder, statistics, skip_first=tokens.shape[1])
    with pytest.raises(ValueError, match="tokens is a masked array with .* masked value"):
        fit(LAYER, data=np.ma.masked_equal(tokens, tokens[0, 0]))
    broken = gpt_neox()
    with torch.no_grad():
        broken.get_output_embeddings().weight[3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        AblationPredictor(broken, LAYER, n_points=3).fit(tokens)


@pytest.mark.parametrize(
    "check",
    [
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimators_unfitted",
        "check_get_params_invariance",
        "check_mixin_order",
        "check_no_attributes_set_in_init",
        "check_set_params",
        "check_valid_tag_types",
    ],
)
def test_scikit_learn_checks(teacher, check):
    getattr(estimator_checks, check)("AblationPredictor", AblationPredictor(teacher, LAYER))
