import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import estimator_checks
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from geofloor import BottleneckPredictor, DistilledStudent, LossForecaster
from geofloor.datasets import load_teacher
from geofloor.displays import ForecastDisplay
from geofloor.forecasting import AboveBottleneck
from geofloor.language_models import _bottleneck, _low_rank_fit, zero_width_kl
from geofloor.language_models._bottleneck import _monotone
from geofloor.language_models._divergence import Targets
from geofloor.language_models._low_rank_fit import LowRankFit

N_TOKENS, WIDTH, LENGTH = 16, 8, 10


def gpt_neox():
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=N_TOKENS, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=1, intermediate_size=32,
        max_position_embeddings=LENGTH, initializer_range=1.0,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=N_TOKENS, n_embd=WIDTH, n_layer=1, n_head=1, n_positions=LENGTH, initializer_range=0.8)
    ).eval()


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=N_TOKENS, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        intermediate_size=32, max_position_embeddings=LENGTH, initializer_range=0.8,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Biased(torch.nn.Module):
    """Logits with a bias, and without a separate unembedding."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.bias = torch.nn.Parameter(torch.linspace(-2, 2, N_TOKENS))

    def forward(self, ids):
        return self.model(ids).logits + self.bias


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(N_TOKENS, size=(20, LENGTH))


def halves(tokens):
    """Split into the sequences that are fitted and the others, when all positions are drawn."""
    order = np.random.RandomState(0).permutation(len(tokens))
    return tokens[np.sort(order[::2])], tokens[np.sort(order[1::2])]


def fitted(model, tokens, **settings):
    return BottleneckPredictor(model, **{"n_positions": 10**6, "n_points": 20, "random_state": 0, **settings}).fit(
        tokens
    )


def distributions(model, tokens, temperature):
    with torch.no_grad():
        output = model(torch.from_numpy(tokens))
        logits = output if isinstance(output, torch.Tensor) else output.logits
    return torch.softmax(logits.double() / temperature, dim=-1).flatten(0, 1)


def lowest(p, width):
    """Compute the least KL of softmax(H W' + b) from p, by L-BFGS in float64 from several random starts."""
    shapes = [(len(p), width), (p.shape[1], width), (p.shape[1],)]
    ends = np.cumsum([np.prod(shape) for shape in shapes])

    def value(flat):
        flat = torch.from_numpy(flat).requires_grad_()
        parts = flat.tensor_split(torch.from_numpy(ends[:-1]))
        rows, weight, bias = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        loss = functional.kl_div((rows @ weight.T + bias).log_softmax(1), p, reduction="batchmean")
        loss.backward()
        return loss.item(), flat.grad.numpy()

    starts = [np.random.default_rng(seed).normal(size=ends[-1]) for seed in range(2)]
    options = {"maxiter": 1200, "maxfun": 3000}
    return min(minimize(value, start, jac=True, method="L-BFGS-B", options=options).fun for start in starts)


@pytest.mark.parametrize(("make", "temperature"), [(gpt_neox, 1.0), pytest.param(gpt2, 2.0, marks=pytest.mark.slow)])
def test_the_loss_is_the_lowest_that_logits_of_the_rank_can_have(make, temperature, tokens):
    model = make()
    bound = fitted(model, tokens, temperature=temperature, widths=[1, 3], n_steps=400)
    p = distributions(model, halves(tokens)[0], temperature)
    for width in (1, 3):
        low = bound.predict([width], return_bounds=True)[1][0, 0]
        assert low == pytest.approx(lowest(p, width), rel=0.02)


@pytest.mark.parametrize("make", [gpt_neox, gpt2, llama])
def test_both_ends_of_the_curve(make, tokens):
    model = make()
    bound = fitted(model, tokens)
    # Layer normalization removes one dimension.
    assert bound.rank_ == (WIDTH if make is llama else WIDTH - 1) == bound.critical_width_
    assert bound.curve_["width"].tolist() == list(range(bound.rank_))
    losses, ends = bound.predict([0, bound.rank_, 100], return_bounds=True)
    assert losses[1:].tolist() == [0, 0]
    assert not ends[1:].any()
    assert np.abs(ends[0] / zero_width_kl(model, halves(tokens)[0]) - 1.0).min() < 1e-4
    assert losses[0] == bound.zero_width_loss_ == pytest.approx(np.sqrt(ends[0].prod()))
    assert ends[0].tolist() == pytest.approx(bound.curve_.loc[0, ["low", "high"]].tolist())
    falling = bound.predict(np.arange(bound.rank_ + 1))
    assert (np.diff(falling) < 0).all()
    np.testing.assert_array_equal(bound.predict([2.9, 3.0]), falling[2:4])
    np.testing.assert_array_equal(bound.transform([2, 3]), falling[2:4, np.newaxis])
    low = bound.predict(np.arange(bound.rank_ + 1), return_bounds=True)[1][:, 0]
    assert (bound.min_width(low[3]), bound.min_width(0.99 * low[3]), bound.min_width(0.0)) == (3, 4, bound.rank_)
    assert bound.min_width([low[0], low[2]]).tolist() == [0, 2]
    with pytest.raises(ValueError, match="target contains NaN"):
        bound.min_width(np.nan)
    # Dimensions with zero weights in the unembedding do not count.
    with torch.no_grad():
        model.get_output_embeddings().weight[:, 4:] = 0
    exact = fitted(model, tokens, n_steps=1)
    assert exact.rank_ == 4
    assert not exact.predict([4, 5], return_bounds=True)[1].any()


def test_other_positions_lose_more_and_more_positions_close_the_gap():
    teacher = load_teacher()
    tokens = np.stack([np.roll(np.arange(2048), shift)[:64] for shift in range(0, 2048, 64)])
    few, many = (
        fitted(teacher.model, tokens, widths=[8, 32], n_positions=n, n_fitted=n, n_steps=30).curve_.query(
            "width in (8, 32)"
        )
        for n in (128, 1024)
    )
    for curve in (few, many):
        assert (curve["low"] < curve["high"]).all()
    assert (few["low"] < many["low"]).all()
    assert (many["high"] < few["high"]).all()


# The usual step; one that ends between the start and the start with its rows refined; one that destroys the start.
@pytest.mark.parametrize(("scale", "kept"), [(0.045, False), (0.3, True), (100.0, True)])
def test_no_step_ends_above_the_refined_start(scale, kept, monkeypatch):
    model, tokens = load_teacher().model, np.random.default_rng(0).integers(2048, size=(16, 32))
    settings = {"widths": [8, 64, 112, 124], "n_steps": 1}
    monkeypatch.setattr(_low_rank_fit, "_SCALE", scale)
    curve = fitted(model, tokens, **settings).curve_
    monkeypatch.setattr(LowRankFit, "fit", lambda *given: None)  # rows alone are refined
    refined = fitted(model, tokens, **settings).curve_
    wide = curve["width"] > 0
    assert (curve["low"] <= 1.01 * refined["low"]).all()
    np.testing.assert_allclose(curve["start"], refined["low"], rtol=0.01)
    assert (curve["low"] <= curve["start"]).all()
    assert (curve["low"] < 0.99 * curve["start"])[wide].all() != kept
    if kept:  # with the unembedding of the start
        assert (curve["low"] == curve["start"])[wide].all()
        np.testing.assert_array_equal(curve["high"], refined["high"])
    assert (curve["low"] <= curve["high"]).all()
    assert (np.diff(curve[["low", "high"]], axis=0) < 0).all()


def test_sequences_that_the_test_does_not_need_are_fitted(tokens, monkeypatch):
    sizes = []

    def counted(part, *args, **options):
        sizes.append(len(part.rows))
        return Targets(part, *args, **options)

    monkeypatch.setattr(_bottleneck, "Targets", counted)
    fitted(gpt_neox(), tokens, n_positions=10, widths=[2], n_steps=1)  # four of the 20 sequences test
    assert sizes[0] == 16 * LENGTH
    assert 2 <= sizes[1] <= 4 * LENGTH
    fitted(gpt_neox(), tokens, n_positions=100, widths=[2], n_steps=1)  # half, at most
    assert sizes[2] == 10 * LENGTH
    fitted(gpt_neox(), tokens, n_fitted=30, widths=[2], n_steps=1)
    assert 2 <= sizes[4] < 60


def test_losses_of_a_narrower_width_hold_for_wider_ones():
    given = pd.DataFrame(
        {"width": [0, 4, 8], "low": [3, 1, 1.5], "high": [4, 2, 1.9], "standard_error": [0.3, 0.1, 0.2],
         "high_standard_error": [0.4, 0.2, 0.1]}
    )  # fmt: skip
    with pytest.warns(ConvergenceWarning, match=r"at widths \[8\] are above those of a narrower width.*Raise n_steps"):
        found = _monotone(given.copy())
    assert found["low"].tolist() == [3, 1, 1]
    assert found["standard_error"].tolist() == [0.3, 0.1, 0.1]
    pd.testing.assert_frame_equal(found[["high", "high_standard_error"]], given[["high", "high_standard_error"]])


def test_the_interval_is_the_bounds_widened_by_their_sampling_errors(tokens):
    bound = fitted(gpt_neox(), tokens, widths=[2, 4], n_steps=20)
    losses, bounds = bound.predict([0, 2, 4, bound.rank_], return_bounds=True)
    same, interval = bound.predict([0, 2, 4, bound.rank_], return_interval=True, level=0.9)
    np.testing.assert_array_equal(same, losses)
    errors = bound.curve_.set_index("width").loc[[2, 4], ["standard_error", "high_standard_error"]].to_numpy()
    expected = bounds[1:3] * np.exp(1.6448536 * errors / bounds[1:3] * [-1, 1])
    np.testing.assert_allclose(interval[1:3], expected, rtol=1e-6)
    assert not interval[3].any()
    _, wider = bound.predict([2], return_interval=True, level=0.99)
    assert wider[0, 0] < interval[1, 0] < bounds[1, 0] < bounds[1, 1] < interval[1, 1] < wider[0, 1]
    with pytest.raises(ValueError, match="return_bounds=True and return_interval=True exclude each other"):
        bound.predict([2], return_bounds=True, return_interval=True)
    with pytest.raises(ValueError, match=r"level=0.0 must be a finite number above 0"):
        bound.predict([2], return_interval=True, level=0.0)


def test_no_student_gets_below_it():
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=LENGTH, initializer_range=1.0,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config).eval()
    tokens = np.random.default_rng(0).integers(64, size=(20, LENGTH))
    seen = halves(tokens)[0]
    bound = fitted(model, tokens, widths=[8, 16])
    for width in (8, 16):
        least = bound.predict([width], return_bounds=True)[1][0, 0]
        # Trained on the text of its evaluation.
        student = DistilledStudent(
            model, width, n_steps=600, batch_size=len(seen), init="random", device="cpu", random_state=0
        ).fit(seen, eval_tokens=seen)  # fmt: skip
        assert least < student.floor_ < 0.9 * bound.zero_width_loss_


def test_logits_are_taken_from_any_module_and_padding_is_left_out(tokens):
    whole = fitted(gpt_neox(), tokens, widths=[2], n_steps=300)
    split = fitted(Biased(gpt_neox()), tokens, widths=[2], n_steps=300)
    # The student's bias can copy the teacher's bias, but not the resulting probabilities.
    p = distributions(Biased(gpt_neox()), halves(tokens)[0], 2.0)
    assert split.rank_ == whole.rank_ == WIDTH - 1
    assert split.curve_["low"][1] == pytest.approx(lowest(p, 2), rel=0.02)
    real = np.where(tokens == N_TOKENS - 1, 0, tokens)
    padded = real.copy()
    padded[:, 6:] = N_TOKENS - 1
    shorter = fitted(gpt_neox(), real[:, :6], widths=[2])
    masked = fitted(gpt_neox(), padded, widths=[2], pad_token_id=N_TOKENS - 1)
    np.testing.assert_allclose(masked.curve_, shorter.curve_, rtol=3e-2)  # another order of minibatches


class Masked(torch.nn.Module):
    """Logits with masked tokens: at all positions, as in a padded vocabulary, or at some positions only."""

    def __init__(self, model, everywhere):
        super().__init__()
        self.model, self.everywhere = model, everywhere

    def forward(self, ids):
        logits = functional.pad(self.model(ids).logits, (2, 3), value=-torch.inf if self.everywhere else 0.0)
        if not self.everywhere:
            logits[:, ::2, 4] = -torch.inf
        return logits


def test_tokens_that_are_masked_at_every_position_drop_out(tokens):
    settings = {"n_steps": 20, "widths": [2, 4], "random_state": 0}

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = gpt_neox()

        def forward(self, ids):
            return self.model(ids).logits

    expected = BottleneckPredictor(Plain(), **settings).fit(tokens)
    found = BottleneckPredictor(Masked(gpt_neox(), True), **settings).fit(tokens)
    assert found.rank_ == expected.rank_
    np.testing.assert_array_equal(found.curve_, expected.curve_)


def test_tokens_that_a_bias_masks_drop_out(tokens):
    model = gpt_neox()
    head = model.get_output_embeddings()
    masked = torch.nn.Linear(WIDTH, N_TOKENS + 2)
    with torch.no_grad():
        masked.weight.normal_()
        masked.weight[:N_TOKENS] = head.weight
        masked.bias.zero_()
        masked.bias[N_TOKENS:] = -torch.inf
    settings = {"n_steps": 20, "widths": [2, 4], "random_state": 0}
    biased = torch.nn.Linear(WIDTH, N_TOKENS)
    with torch.no_grad():
        biased.weight.copy_(head.weight)
        biased.bias.zero_()
    model.set_output_embeddings(biased)
    expected = BottleneckPredictor(model, **settings).fit(tokens)
    model.set_output_embeddings(masked)
    found = BottleneckPredictor(model, **settings).fit(tokens)
    np.testing.assert_array_equal(found.curve_, expected.curve_)


def test_tokens_that_are_masked_at_some_positions_are_refused(tokens):
    with pytest.raises(ValueError, match="−inf for some tokens at some positions only"):
        BottleneckPredictor(Masked(gpt_neox(), False)).fit(tokens)


def test_the_seed_draws_the_positions_and_the_teacher_stays_as_it_is(tokens):
    model = gpt_neox().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"n_positions": 40, "widths": [2], "n_steps": 20}
    first, again, other = (fitted(model, tokens, **settings, random_state=seed) for seed in (1, 1, 2))
    assert first.curve_.equals(again.curve_)
    assert not first.curve_.equals(other.curve_)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    copied = clone(first)
    assert copied.teacher is model
    assert not hasattr(copied, "curve_")


def test_a_law_above_the_bound(tokens):
    bound = fitted(gpt_neox(), tokens)
    widths = np.array([1, 2, 4, 6])
    shares = bound.predict(widths) / bound.zero_width_loss_
    losses = bound.zero_width_loss_ * np.exp(-0.5 * (-np.log(shares)) ** 1.25)
    for seen in (slice(1, 2), slice(0, 4, 2)):  # one run is enough
        law = LossForecaster(AboveBottleneck(bound)).fit(widths[seen], losses[seen])
        np.testing.assert_allclose(law.predict(widths), losses)
        assert law.params_ == {"coefficient": pytest.approx(0.5)}
        zero = f"{bound.zero_width_loss_:.3f}"
        assert law.law_.describe(law.params_) == f"{zero} exp(-0.500 log({zero} / R(d))^1.25)"
        assert law.predict([0], return_interval=True)[1].tolist() == [[bound.predict([0])[0]] * 2]
    with pytest.warns(UserWarning, match="width 50, which is not below bound.critical_width_=7"):
        forecast, ends = law.predict([3, bound.rank_, 50], return_interval=True)
    assert forecast[1:].tolist() == [0, 0]
    assert not ends[1:, 0].any()
    assert (ends[1:, 1] > 0).all()
    assert law.min_width(0.0) == bound.rank_
    # A law fitted to losses at the bound is kept above it.
    least = bound.predict(widths, return_bounds=True)[1][:, 0]
    low = LossForecaster(AboveBottleneck(bound, exponent=1.0)).fit(widths[[0]], least[[0]])
    losses, ends = low.predict(widths, return_interval=True)
    assert (losses >= least).all()
    assert (ends >= least[:, np.newaxis]).all()
    decision = low.decide(2, least[1] / 2)
    assert (decision.answer, decision.least) == ("impossible", pytest.approx(least[1]))
    assert f"can't reach {least[1] / 2:.3g} nats per token, however it is trained: none gets below" in str(decision)
    assert clone(law).law.bound is bound
    band = ForecastDisplay.from_forecaster(law, widths).least_band_
    assert band.get_datalim(band.axes.transData).y1 == pytest.approx(least[0])


def test_the_law_above_the_bound_names_what_it_cannot_use(tokens):
    with pytest.raises(ValueError, match="exponent=0.0 must be a finite number above 0"):
        AboveBottleneck(fitted(gpt_neox(), tokens, n_steps=1), exponent=0.0)
    with pytest.raises(ValueError, match="not fitted"):
        AboveBottleneck(BottleneckPredictor(None))
    with pytest.raises(TypeError, match="bound=3 is no bound; give a fitted BottleneckPredictor"):
        AboveBottleneck(3)
    with pytest.raises(TypeError, match=r"law=BottleneckPredictor.* is no law; put a bound in AboveBottleneck\(...\)"):
        LossForecaster(fitted(gpt_neox(), tokens, n_steps=1)).fit([2], [0.1])


def test_laws_say_which_runs_have_no_place_above_the_bound(tokens):
    bound = fitted(gpt_neox(), tokens, n_steps=1)
    low = bound.predict([4], return_bounds=True)[1][0, 0] / 3
    with pytest.raises(
        ValueError, match=rf"{low:.3g} at width 4, .* gets below {3 * low:.3g}.*temperature=2.0.*cross-en"
    ):
        LossForecaster(AboveBottleneck(bound)).fit([2, 4], [bound.predict([2])[0], low])
    with pytest.raises(ValueError, match=r"width 7, which is not below bound.critical_width_=7"):
        LossForecaster(AboveBottleneck(bound)).fit([7], [0.1])
    with pytest.raises(ValueError, match=r"loss 9.5, which is not below bound.zero_width_loss_="):
        LossForecaster(AboveBottleneck(bound)).fit([2], [9.5])


def test_small_integers_of_numpy_do_not_wrap(tokens):
    settings = {"n_steps": 5, "n_points": 3, "n_positions": 100, "batch_size": 3, "random_state": 0}
    plain = BottleneckPredictor(gpt_neox(), **settings).fit(tokens)
    small = BottleneckPredictor(gpt_neox(), **{name: np.int8(value) for name, value in settings.items()}).fit(tokens)
    assert small.curve_.equals(plain.curve_)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"teacher": 3}, TypeError, "teacher=3 is a int; give a transformers model"),
        ({"model_kwargs": 3}, TypeError, "model_kwargs=3 is a int"),
        ({"widths": [2.5]}, ValueError, r"widths=\[2.5\] must be whole numbers"),
        ({"n_steps": "x"}, ValueError, "n_steps='x' must be a whole number"),
        ({"temperature": torch.nan}, ValueError, "temperature=nan must be a finite number"),
        ({"pad_token_id": "x"}, ValueError, "pad_token_id='x' must be a whole number"),
    ],
)
def test_parameters_are_named(tokens, settings, error, message):
    with pytest.raises(error, match=message):
        BottleneckPredictor(**{"teacher": gpt_neox(), **settings}).fit(tokens)


def test_widths_beyond_any_rank_are_not_measured(tokens):
    found = BottleneckPredictor(gpt_neox(), widths=[2, 1e30], n_steps=2, random_state=0).fit(tokens)
    assert found.curve_["width"].tolist() == [0, 2, found.rank_ - 1]


def test_bad_input_is_named(tokens):
    def fit(data=tokens, **settings):
        return BottleneckPredictor(gpt_neox(), **settings).fit(data)

    with pytest.raises(ValueError, match="tokens has 1 sequence; give more"):
        fit(tokens[:1])
    for name, value in (
        ("temperature", 0),
        ("n_points", 1),
        ("n_positions", 1),
        ("n_fitted", 1),
        ("n_steps", 0),
        ("batch_size", 0),
    ):
        with pytest.raises(ValueError, match=f"{name}={value} must be"):
            fit(**{name: value})
    with pytest.raises(ValueError, match="Negative values in data passed to widths"):
        fit(widths=[-1])
    with pytest.raises(ValueError, match="token id 16, outside the teacher's vocabulary"):
        fit(tokens + 1)
    with pytest.raises(ValueError, match="Negative values"):
        fit(n_steps=1).predict([-1])
    for name in ("get_input_embeddings", "get_output_embeddings"):
        broken = gpt_neox()
        with torch.no_grad():
            getattr(broken, name)().weight[:] = torch.nan
        with pytest.raises(ValueError, match="logits are not finite"):
            BottleneckPredictor(broken).fit(tokens)
    flat = gpt_neox()
    with torch.no_grad():
        flat.get_output_embeddings().weight[:] = 1.0
    with pytest.raises(ValueError, match="logits have rank [01] on these tokens"):
        BottleneckPredictor(flat).fit(tokens)


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
def test_scikit_learn_checks(check):
    getattr(estimator_checks, check)("BottleneckPredictor", BottleneckPredictor(gpt_neox()))


def test_excluded_tokens_do_not_count(tokens):
    text = np.minimum(tokens, N_TOKENS - 3)
    longer = text.copy()
    longer[:, 7:] = N_TOKENS - 1  # the model is causal: later tokens change nothing before them
    longer[::3, 7] = N_TOKENS - 2
    found = fitted(gpt_neox(), longer, n_points=3, n_steps=5, exclude_tokens=[N_TOKENS - 1, N_TOKENS - 2])
    short = fitted(gpt_neox(), text[:, :7], n_points=3, n_steps=5)
    np.testing.assert_allclose(found.curve_, short.curve_, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="tokens give 0 position"):
        fitted(gpt_neox(), tokens, exclude_tokens=range(N_TOKENS))
    with pytest.raises(ValueError, match="exclude_tokens='special' needs a tokenizer, and the teacher is an object"):
        fitted(gpt_neox(), tokens, exclude_tokens="special")
