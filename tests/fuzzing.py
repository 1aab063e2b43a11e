"""Calls of all public names, odd values for their arguments, and the outcomes allowed."""

import copy
import importlib
import inspect
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from display_calls import CALLS
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

import geofloor
from geofloor import datasets, displays, features, forecasting, language_models, probing, students, theory, toy
from geofloor.features._precision import has_bf16
from geofloor.planning._settings import PlanSettings
from geofloor.planning._stages import StudentRun, TeacherFacts

FOLDER = tempfile.TemporaryDirectory(prefix="geofloor-fuzz-")  # goes when Python ends
N_TOKENS = 24


class Case(NamedTuple):
    """A working call, `call(**arguments)`, and the `parameters` to replace in it."""

    call: Callable[..., Any]
    arguments: dict[str, Any]
    parameters: tuple[str, ...]


@cache
def teacher() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=N_TOKENS, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16,
                max_position_embeddings=8, initializer_range=0.3,
            )
        ).eval()  # fmt: skip


@cache
def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({"<end>": 0, **{str(i): i for i in range(1, N_TOKENS)}}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")


RNG = np.random.default_rng(0)
IMPORTANCES = 1.0 / np.arange(1, 61) ** 1.5
WIDTHS = np.array([2, 4, 8, 16])
LOSSES = np.array([1.3, 0.9, 0.7, 0.6])
FLOORS = np.array([[0.3], [0.1], [0.03], [0.01]])
ROWS = np.maximum(RNG.normal(size=(40, 6)), 0.0) @ RNG.normal(size=(6, 4))
CODES = sp.csr_array(np.maximum(RNG.normal(size=(60, 8)) - 1.2, 0.0))
LABELS = np.repeat([0, 1], 20)
TOKENS = RNG.integers(N_TOKENS, size=(12, 6))
TEXTS = [" ".join(map(str, row)) for row in TOKENS]
SPARSE = toy.SparseFeatures(4, 0.7).sample(64, random_state=0)
HERE = {"device": "cpu", "random_state": 0}
TOY = {"n_steps": 3, "max_rounds": 1, "n_eval_samples": 64, "batch_size": 8, **HERE}
STUDENT = {"n_steps": 2, "warmup_steps": 1, "batch_size": 4, "eval_every": 1, "eval_sequences": 2, **HERE}
ENCODER = {"n_epochs": 1, "batch_size": 20, "dead_after": 20, **HERE}
SWEEP = {"n_features": 4, "widths": [1, 2], "alphas": 0.8, "teacher_widths": None, "n_seeds": 2, **TOY}
PILE = [
    {"text": f"Row {number} holds plain text, one of a few. " * 9, "meta": {"pile_set_name": name}}
    for number, name in enumerate(["Github", "Pile-CC", "Wikipedia (en)", "StackExchange", "ArXiv"] * 4)
]


SMALL = ("floor", "statistics", "ablation", "bottleneck", "forecaster")  # estimators of small files
ALLOCATIONS = ("CutoffAllocation", "WaterfillingAllocation", "BlocksAllocation", "AutoAllocation")
CHARGED = theory.ChargedFeatures(IMPORTANCES, IMPORTANCES[::-1], None, 0.9, 4.3, None, None)


@cache
def fitted(name: str) -> Any:
    """Return a fitted estimator, to be copied by whoever changes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "floor": lambda: geofloor.FloorPredictor(alpha=0.9).fit(IMPORTANCES),
            "statistics": lambda: geofloor.FeatureStatistics().fit(CODES),
            "autoencoder": lambda: geofloor.SparseAutoencoder(8, **ENCODER).fit(ROWS),
            "autoencoder_of_teacher": lambda: geofloor.SparseAutoencoder(12, **ENCODER).fit(
                fitted("extractor").transform(TOKENS)
            ),
            "affine": lambda: geofloor.AffineCalibrator().fit(FLOORS, LOSSES),
            "power": lambda: geofloor.PowerLawCalibrator().fit(WIDTHS, LOSSES),
            "capacities": lambda: forecasting.CapacityCalibrator(fitted("floor")).fit(WIDTHS, LOSSES),
            "forecaster": lambda: geofloor.LossForecaster(forecasting.Calibrated(fitted("floor"))).fit(WIDTHS, LOSSES),
            "budgets": lambda: forecasting.BudgetForecaster().fit([2, 4, 2], [1.3, 0.9, 1.2], [20, 20, 40]),
            "longer": lambda: geofloor.LossForecaster("power").fit([2, 4, 2], [1.3, 0.9, 1.2], n_steps=[20, 20, 40]),
            "extractor": lambda: geofloor.ActivationExtractor(teacher(), 0, device="cpu"),
            "student": lambda: geofloor.DistilledStudent(teacher(), 4, **STUDENT).fit(TOKENS),
            "bottleneck": lambda: bottleneck().fit(TOKENS),
            "ablation": lambda: geofloor.AblationPredictor(teacher(), 0, n_points=3, device="cpu").fit(TOKENS),
            "plan": lambda: geofloor.Plan(
                PlanSettings(widths=(2, 4), budgets=(300,), target_kl=0.05),
                TeacherFacts("teacher", "gpt_neox", 8, 1, 1, N_TOKENS, 1000, ""),
                [],
                bound=fitted("bottleneck"),
                runs=[StudentRun(2, 300, 0.06, 0.001, "principal"), StudentRun(4, 300, 0.04, 0.001, "principal")],
            ),
            "probe": lambda: geofloor.ConceptProbe(random_state=0).fit(ROWS, LABELS),
            "toy": lambda: geofloor.ToyModel(2, **TOY).fit(SPARSE),
            "sweep": lambda: toy.toy_sweep(**SWEEP),
            "waterfilling": lambda: theory.Waterfilling(IMPORTANCES, theory.cutoff_curve(3.0)),
            "packing": lambda: theory.BlockPacking(IMPORTANCES[:4], [1, 2], [1, 3], [0.0, 0.1]),
            **{name: getattr(theory, name) for name in ALLOCATIONS},
            "CurveAllocation": lambda: theory.CurveAllocation(theory.cutoff_curve(3.0)),
        }[name]()


def bottleneck(**changes: Any) -> Any:
    settings = {"widths": [2, 4], "n_steps": 2, "n_positions": 20, **HERE, **changes}
    return geofloor.BottleneckPredictor(**{"teacher": teacher(), **settings})


def new_path(suffix: str = "") -> str:
    return os.path.join(tempfile.mkdtemp(dir=FOLDER.name), f"new{suffix}")


@cache
def stored() -> str:
    path = new_path()
    fitted("extractor").transform_to_store(TOKENS, path)
    return path


@cache
def saved(name: str) -> str:
    path = new_path(".safetensors")
    fitted(name).save(path)
    return path


@cache
def published(name: str) -> str:
    path = new_path()
    fitted(name).save(path, format="saelens")
    return path


def checkpoint_of(name: str, **data: Any) -> str:
    path = new_path(".safetensors")
    clone(fitted(name)).set_params(checkpoint_path=path).fit(**data)
    return path


def of_class(made: Callable[..., Any], use: Callable[[Any], Any] = lambda made: None, **arguments: Any) -> Case:
    return Case(lambda **given: use(made(**given)), arguments, parameters_of(made))


def of_method(name: str, method: str, use: Callable[[Any], Any] = lambda made: made, **arguments: Any) -> Case:
    """Call a method of a copy of a fitted estimator."""

    def called(*data: Any, **given: Any) -> Any:
        return getattr(copy.deepcopy(fitted(name)), method)(*data, **given)

    return of_function(called, use, parameters_of(getattr(type(fitted(name)), method))[1:], **arguments)


def of_function(
    function: Callable[..., Any],
    use: Callable[[Any], Any] = lambda made: made,
    parameters: tuple[str, ...] | None = None,
    **arguments: Any,
) -> Case:
    """Call a function, with its data in first place, where wrappers of scikit-learn and dispatch look for them."""
    parameters = parameters_of(function) if parameters is None else parameters
    first = [name for name in parameters[:1] if name in arguments]

    def call(**given: Any) -> Any:
        return use(function(*[given.pop(name) for name in first], **given))

    return Case(call, arguments, parameters)


def parameters_of(called: Callable[..., Any]) -> tuple[str, ...]:
    plain = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
    return tuple(name for name, value in inspect.signature(called).parameters.items() if value.kind not in plain)


def allocated(allocation: Any) -> Any:
    return geofloor.FloorPredictor(0.9, allocation=allocation).fit(IMPORTANCES).predict(WIDTHS)


def drawing(display: Any, way: str | None, arguments: dict[str, Any]) -> Case:
    names = parameters_of(getattr(display, way) if way else display)
    if not way:
        names += parameters_of(display.plot)[1:]
    if "students" in arguments:
        arguments = {"students": [fitted("student")]}

    def call(**given: Any) -> None:
        if way:
            getattr(display, way)(**given)
        else:
            plot = {name: given.pop(name) for name in parameters_of(display.plot)[1:] if name in given}
            display(**given).plot(**plot).frame()

    return Case(call, arguments, names)


def pushed(repo_id: Any, **given: Any) -> str:
    """Push a student, without a network."""
    made = SimpleNamespace(repo_id="owner/name", commit_url="https://huggingface.co/owner/name/commit/1")
    with patch.multiple(
        "huggingface_hub.HfApi", create_repo=lambda *_, **__: made, upload_folder=lambda *_, **__: made
    ):
        return fitted("student").push_to_hub(repo_id, **given)


def planned(teacher: Any, texts: Any, **given: Any) -> Any:
    """Plan up to the estimate of the cost, which takes seconds and is left out."""
    with patch("geofloor.planning._distillation.estimate_cost", lambda *_, **__: []):
        return geofloor.plan_distillation(teacher, texts, **given | {"dry_run": True}).sizes


@cache
def kept_plan() -> str:
    path = new_path()
    fitted("plan").save(path)
    return path


def of_law(law: Any) -> Any:
    return geofloor.LossForecaster(law).fit(WIDTHS, LOSSES).predict(WIDTHS, return_interval=True)


def take(stream: Any) -> list[Any]:
    return [item for item, _ in zip(stream, range(3), strict=False)]


@cache
def cases() -> dict[str, Case]:
    """Return a call of every documented function, class and method, by name."""
    floors = fitted("floor")
    fit = {
        "FloorPredictor": lambda made: made.fit(IMPORTANCES).predict(WIDTHS),
        "FeatureStatistics": lambda made: made.fit(CODES).transform(CODES),
        "SparseAutoencoder": lambda made: made.fit(ROWS).transform(ROWS),
        "AffineCalibrator": lambda made: made.fit(FLOORS, LOSSES).predict(FLOORS),
        "LossForecaster": lambda made: made.fit(WIDTHS, LOSSES).predict(WIDTHS, return_interval=True),
        "tokens": lambda made: made.fit(TOKENS).predict(WIDTHS[:2]),
        "DistilledStudent": lambda made: made.fit(TOKENS).score(TOKENS),
        "ConceptProbe": lambda made: made.fit(ROWS, LABELS).predict_proba(ROWS),
        "ToyModel": lambda made: made.fit(SPARSE).predict(SPARSE),
        "CapacityCalibrator": lambda made: made.fit(WIDTHS, LOSSES).predict(WIDTHS),
    }
    table = fitted("sweep")
    summary = toy.summarize_sweep(table)
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    runs = {"X": WIDTHS, "y": LOSSES}
    budgets = {"widths": [2, 4, 2], "losses": [1.3, 0.9, 1.2], "n_steps": [20, 20, 40]}
    found = {
        "ActivationExtractor": of_class(
            geofloor.ActivationExtractor, lambda made: made.transform(TOKENS), model=teacher(), layer=0, device="cpu"
        ),
        "ActivationExtractor(output='attention')": of_class(
            geofloor.ActivationExtractor,
            lambda made: made.transform(TOKENS),
            model=teacher(),
            layer=0,
            output="attention",
            device="cpu",
        ),
        "ActivationExtractor.fit": of_method("extractor", "fit", X=TOKENS),
        "ActivationExtractor.transform": of_method("extractor", "transform", X=TOKENS),
        "ActivationExtractor.iter_batches": of_method("extractor", "iter_batches", list, X=TOKENS),
        "ActivationExtractor.transform_to_store": Case(
            lambda **given: fitted("extractor").transform_to_store(**({"path": new_path()} | given))[:3],
            {"X": TOKENS},
            parameters_of(geofloor.ActivationExtractor.transform_to_store)[1:],
        ),
        "ActivationStore": of_class(geofloor.ActivationStore, lambda made: made[:3], path=stored()),
        "ActivationStore.iter_batches": Case(
            lambda **given: list(geofloor.ActivationStore(stored()).iter_batches(**given)),
            {"batch_size": 7},
            ("batch_size",),
        ),
        "ActivationStore.verify": Case(lambda: geofloor.ActivationStore(stored()).verify(), {}, ()),
        "SparseAutoencoder": of_class(geofloor.SparseAutoencoder, fit["SparseAutoencoder"], n_latents=8, **ENCODER),
        "SparseAutoencoder(activation='jumprelu')": of_class(
            geofloor.SparseAutoencoder, fit["SparseAutoencoder"], n_latents=8, activation="jumprelu", **ENCODER
        ),
        "SparseAutoencoder(activation='batchtopk')": of_class(
            geofloor.SparseAutoencoder, fit["SparseAutoencoder"], n_latents=8, activation="batchtopk", **ENCODER
        ),
        "SparseAutoencoder(groups=(4, 8))": of_class(
            geofloor.SparseAutoencoder, fit["SparseAutoencoder"], n_latents=8, groups=(4, 8), **ENCODER
        ),
        "SparseAutoencoder(precision='bf16')": Case(
            lambda **given: fit["SparseAutoencoder"](geofloor.SparseAutoencoder(8, **{**ENCODER, **given})),
            {"precision": "bf16" if has_bf16(torch.device("cpu")) else "float32"},
            ("precision",),
        ),
        "SparseAutoencoder.paper": Case(
            lambda **given: geofloor.SparseAutoencoder.paper(**given, **ENCODER).fit(ROWS).transform(ROWS),
            {"n_latents": 8},
            ("n_latents",),
        ),
        "SparseAutoencoder.fit": of_method("autoencoder", "fit", lambda made: made.decoder_, X=ROWS),
        "SparseAutoencoder.partial_fit": of_method("autoencoder", "partial_fit", lambda made: made.decoder_, X=ROWS),
        "SparseAutoencoder.transform": of_method("autoencoder", "transform", X=ROWS),
        "SparseAutoencoder.inverse_transform": of_method(
            "autoencoder", "inverse_transform", X=fitted("autoencoder").transform(ROWS)
        ),
        "SparseAutoencoder.score": of_method("autoencoder", "score", X=ROWS),
        "SparseAutoencoder.save": of_method("autoencoder", "save", path=new_path(".safetensors")),
        "SparseAutoencoder.from_weights": of_function(
            geofloor.SparseAutoencoder.from_weights,
            lambda made: made.transform(ROWS),
            W_enc=fitted("autoencoder").encoder_,
            b_enc=fitted("autoencoder").encoder_bias_,
            W_dec=fitted("autoencoder").decoder_,
            b_dec=fitted("autoencoder").decoder_bias_,
            activation="jumprelu",
            threshold=0.1,
        ),
        "drop_outliers": of_function(features.drop_outliers, list, X=ROWS, max_norm_ratio=2.0),
        "load_autoencoder": of_function(
            features.load_autoencoder, lambda made: made.transform(ROWS), path=published("autoencoder"), device="cpu"
        ),
        "SparseAutoencoder.load": of_function(
            geofloor.SparseAutoencoder.load, lambda made: made.decoder_, path=saved("autoencoder"), device="cpu"
        ),
        "SparseAutoencoder.steps_done": of_function(
            geofloor.SparseAutoencoder.steps_done, checkpoint_path=checkpoint_of("autoencoder", X=ROWS)
        ),
        "FeatureStatistics": of_class(geofloor.FeatureStatistics, fit["FeatureStatistics"]),
        "FeatureStatistics.fit": of_method("statistics", "fit", lambda made: made.transform(CODES), codes=CODES),
        "FeatureStatistics.partial_fit": of_method(
            "statistics", "partial_fit", lambda made: made.transform(CODES), codes=CODES
        ),
        "FeatureStatistics.fit_transform": of_method("statistics", "fit_transform", codes=CODES),
        "FeatureStatistics.transform": of_method("statistics", "transform", codes=CODES),
        "FeatureStatistics.merge": of_method(
            "statistics", "merge", lambda made: made.transform(CODES), other=fitted("statistics")
        ),
        "FeatureStatistics.frame": of_method("statistics", "frame"),
        "FeatureStatistics.get_feature_names_out": of_method("statistics", "get_feature_names_out"),
        "FloorPredictor": of_class(geofloor.FloorPredictor, fit["FloorPredictor"], alpha=0.9, capacity="minimax"),
        "FloorPredictor.fit": of_method(
            "floor", "fit", lambda made: made.predict(WIDTHS), importances=IMPORTANCES, second_moments=IMPORTANCES
        ),
        "FloorPredictor.fit_transform": of_method("floor", "fit_transform", X=IMPORTANCES),
        "FloorPredictor.predict": of_method("floor", "predict", widths=WIDTHS),
        "FloorPredictor.transform": of_method("floor", "transform", widths=WIDTHS),
        "FloorPredictor.kept_features": of_method("floor", "kept_features", widths=WIDTHS),
        "FloorPredictor.min_width": of_method("floor", "min_width", target=0.1),
        "FloorPredictor.allocate": of_method("floor", "allocate", width=2),
        "FloorPredictor.get_feature_names_out": of_method("floor", "get_feature_names_out"),
        "AblationPredictor": of_class(
            geofloor.AblationPredictor, fit["tokens"], teacher=teacher(), layer=0, n_points=3, device="cpu"
        ),
        "AblationPredictor(output='mlp')": of_class(
            geofloor.AblationPredictor,
            fit["tokens"],
            teacher=teacher(),
            layer=0,
            output="mlp",
            n_points=3,
            device="cpu",
        ),
        "AblationPredictor.fit": of_method("ablation", "fit", lambda made: made.predict([2]), tokens=TOKENS),
        "AblationPredictor.fit_transform": of_method("ablation", "fit_transform", X=TOKENS),
        "AblationPredictor.predict": of_method("ablation", "predict", widths=WIDTHS, return_interval=True, level=0.8),
        "AblationPredictor.transform": of_method("ablation", "transform", widths=WIDTHS),
        "AblationPredictor.kept_features": of_method("ablation", "kept_features", widths=WIDTHS),
        "AblationPredictor.min_width": of_method("ablation", "min_width", target=0.1),
        "AblationPredictor.get_feature_names_out": of_method("ablation", "get_feature_names_out"),
        "BottleneckPredictor": Case(
            lambda **given: fit["tokens"](bottleneck(**given)),
            {"teacher": teacher(), "widths": [2, 4], "pad_token_id": None},
            parameters_of(geofloor.BottleneckPredictor),
        ),
        "BottleneckPredictor.fit": of_method("bottleneck", "fit", lambda made: made.predict([2]), tokens=TOKENS),
        "BottleneckPredictor.fit_transform": of_method("bottleneck", "fit_transform", X=TOKENS),
        "BottleneckPredictor.predict": of_method(
            "bottleneck", "predict", widths=[2, 3], return_bounds=False, return_interval=True, level=0.8
        ),
        "BottleneckPredictor.transform": of_method("bottleneck", "transform", widths=[2, 3]),
        "BottleneckPredictor.min_width": of_method("bottleneck", "min_width", target=0.1),
        "BottleneckPredictor.get_feature_names_out": of_method("bottleneck", "get_feature_names_out"),
        "LossForecaster": of_class(geofloor.LossForecaster, fit["LossForecaster"], law=forecasting.Calibrated(floors)),
        "LossForecaster auto": of_class(
            geofloor.LossForecaster,
            fit["LossForecaster"],
            law="auto",
            students="principal",
            zero_width_loss=9.0,
            teacher_width=64,
            run_error=0.03,
            form_error=0.15,
        ),
        "LossForecaster.fit": of_method("forecaster", "fit", lambda made: made.predict(WIDTHS), **runs),
        "LossForecaster.fit(n_steps=...)": of_method(
            "longer", "fit", lambda made: made.predict([4]), X=[2, 4, 2], y=[1.3, 0.9, 1.2], n_steps=[20, 20, 40]
        ),
        "LossForecaster.predict": of_method(
            "longer", "predict", widths=WIDTHS, n_steps=80, return_interval=True, level=0.8
        ),
        "LossForecaster.min_width": of_method("longer", "min_width", target=1.0, n_steps=80, safe=True, level=0.8),
        "LossForecaster.min_steps": of_method("longer", "min_steps", target=1.0, width=4, level=0.8),
        "LossForecaster.decide": of_method("longer", "decide", width=4, target=1.0, n_steps=80, level=0.8),
        "BudgetForecaster": of_class(
            forecasting.BudgetForecaster, lambda made: made.fit(**budgets).predict([2, 4], 80), zero_width_loss=2.0
        ),
        "BudgetForecaster.fit": of_method("budgets", "fit", lambda made: made.predict([2, 4], 80), **budgets),
        "BudgetForecaster.predict": of_method(
            "budgets", "predict", widths=[2, 4], n_steps=80, return_interval=True, level=0.8
        ),
        "AffineCalibrator": of_class(geofloor.AffineCalibrator, fit["AffineCalibrator"], baseline=0.1),
        "AffineCalibrator.fit": of_method("affine", "fit", lambda made: made.predict(FLOORS), X=FLOORS, y=LOSSES),
        "AffineCalibrator.predict": of_method("affine", "predict", X=FLOORS, return_interval=True, level=0.8),
        "AffineCalibrator.decompose": of_method("affine", "decompose", X=FLOORS, y=LOSSES),
        "PowerLawCalibrator": of_class(geofloor.PowerLawCalibrator),
        "PowerLawCalibrator.fit": of_method("power", "fit", lambda made: made.predict(WIDTHS), **runs),
        "PowerLawCalibrator.predict": of_method("power", "predict", widths=WIDTHS),
        "DistilledStudent": of_class(
            geofloor.DistilledStudent, fit["DistilledStudent"], teacher=teacher(), width=4, **STUDENT
        ),
        "DistilledStudent.paper": Case(
            lambda **given: fit["DistilledStudent"](geofloor.DistilledStudent.paper(**STUDENT | given)),
            {"teacher": teacher(), "width": 4},
            parameters_of(geofloor.DistilledStudent.paper),
        ),
        "DistilledStudent.fit": of_method(
            "student", "fit", lambda made: made.score(TOKENS), tokens=TOKENS, eval_tokens=TOKENS[:4]
        ),
        **{
            f"DistilledStudent.{name}": of_method("student", name, tokens=TOKENS)
            for name in ("predict", "predict_log_proba", "score", "transform")
        },
        "DistilledStudent.save": of_method("student", "save", path=new_path(".safetensors")),
        "DistilledStudent.load": of_function(
            geofloor.DistilledStudent.load, lambda made: made.predict(TOKENS), path=saved("student"), device="cpu"
        ),
        "DistilledStudent.save_pretrained": of_method("student", "save_pretrained", folder=new_path(), tokenizer=None),
        "DistilledStudent.push_to_hub": of_function(
            pushed, parameters=parameters_of(geofloor.DistilledStudent.push_to_hub)[1:], repo_id="owner/name"
        ),
        "DistilledStudent.steps_done": of_function(
            geofloor.DistilledStudent.steps_done, checkpoint_path=checkpoint_of("student", tokens=TOKENS)
        ),
        **{f"{type(fitted(name)).__name__}.save": of_method(name, "save", path=new_path()) for name in SMALL},
        **{
            f"{type(fitted(name)).__name__}.load": of_function(
                type(fitted(name)).load, lambda made: made.get_params(), path=saved(name)
            )
            for name in SMALL
        },
        "evaluate_student": of_function(
            students.evaluate_student,
            student=fitted("student").model_,
            teacher=teacher(),
            tokens=TOKENS,
            pad_token_id=None,
            device="cpu",
        ),
        "ConceptProbe": of_class(geofloor.ConceptProbe, fit["ConceptProbe"], cv=2, random_state=0),
        "ConceptProbe.fit": of_method(
            "probe", "fit", lambda made: made.predict_proba(ROWS), X=ROWS, y=LABELS, groups=np.arange(40) // 2
        ),
        "ConceptProbe.predict": of_method("probe", "predict", X=ROWS),
        "ConceptProbe.predict_proba": of_method("probe", "predict_proba", X=ROWS),
        "ConceptProbe.split": of_method("probe", "split", y=LABELS, groups=np.arange(40) // 2),
        "ToyModel": of_class(geofloor.ToyModel, fit["ToyModel"], width=2, **TOY),
        "ToyModel.fit": of_method("toy", "fit", lambda made: made.predict(SPARSE), X=SPARSE, teacher=fitted("toy")),
        **{f"ToyModel.{name}": of_method("toy", name, X=SPARSE) for name in ("predict", "score", "transform")},
        "ToyModel.inverse_transform": of_method("toy", "inverse_transform", X=SPARSE[:, :2]),
        "capacity": of_function(theory.capacity, alpha=[0.8, 0.9], method="minimax"),
        "critical_width": of_function(theory.critical_width, n_features=[10, 20], alpha=[0.8, 0.9], method="minimax"),
        "kept_features": of_function(theory.kept_features, width=[10, 20], alpha=[0.8, 0.9], method="minimax"),
        "DistortionCurve": of_class(
            theory.DistortionCurve, lambda made: made, capacities=[0.0, 1.0], distortions=[1.0, 0.0]
        ),
        "lower_hull": of_function(theory.lower_hull, capacities=[0.0, 0.5, 1.0], distortions=[1.0, 0.8, 0.0]),
        "cutoff_curve": of_function(theory.cutoff_curve, capacity=3.0),
        "Waterfilling": of_class(
            theory.Waterfilling,
            lambda made: made.floors(WIDTHS),
            charges=IMPORTANCES[:4],
            curves=[theory.cutoff_curve(3.0), theory.cutoff_curve(4.0)],
            which=[0, 1, 0, 1],
        ),
        **{
            f"Waterfilling.{name}": of_method("waterfilling", name, widths=WIDTHS)
            for name in ("floors", "levels", "served")
        },
        "Waterfilling.shares": of_method("waterfilling", "shares", width=2),
        "BlockPacking": of_class(
            theory.BlockPacking,
            lambda made: made.floors([1, 2]),
            charges=IMPORTANCES[:4],
            block_widths=[1, 2],
            block_features=[1, 3],
            block_distortions=[0.0, 0.1],
        ),
        "BlockPacking.floors": of_method("packing", "floors", widths=[1, 2]),
        "BlockPacking.shares": of_method("packing", "shares", width=2),
        "BlockPacking.served": of_method("packing", "served", widths=[1, 2]),
        **{name: of_class(getattr(theory, name), allocated) for name in ALLOCATIONS},
        "CurveAllocation": of_class(theory.CurveAllocation, allocated, distortion=theory.cutoff_curve(3.0)),
        **{
            f"{name}.divide": of_method(name, "divide", lambda made: made.floors(WIDTHS), features=CHARGED)
            for name in (*ALLOCATIONS, "CurveAllocation")
        },
        "blocks": of_function(theory.blocks, alpha=0.9),
        "distortion_curve": of_function(theory.distortion_curve, alpha=0.9),
        "distortion_curves": of_function(theory.distortion_curves, alphas=[0.9, 0.95]),
        "empty_distortion": of_function(theory.empty_distortion, alpha=0.9),
        "fit_autoencoders": of_function(
            features.fit_autoencoders,
            lambda made: [sae.decoder_ for sae in made],
            parameters_of(features.fit_autoencoders),
            autoencoders=[geofloor.SparseAutoencoder(8, l0=l0, **ENCODER) for l0 in (1, 2)],
            X=ROWS,
        ),
        "power_law_tail": of_function(features.power_law_tail, values=IMPORTANCES),
        "resampled_tables": of_function(
            features.resampled_tables, take, blocks=[fitted("statistics")] * 2, n_resamples=2, random_state=0
        ),
        "bootstrap_floors": of_function(
            features.bootstrap_floors,
            predictor=floors,
            blocks=[fitted("statistics")] * 2,
            widths=[1, 2],
            n_resamples=3,
            random_state=0,
        ),
        "SparseFeatures": of_class(
            toy.SparseFeatures, lambda made: made.sample(3, random_state=0), n_features=4, alpha=0.7
        ),
        "SparseFeatures.sample": Case(
            lambda **given: toy.SparseFeatures(4, 0.7).sample(**given),
            {"n_samples": 3, "random_state": 0},
            ("n_samples", "random_state"),
        ),
        "SparseFeatures.sample_active": Case(
            lambda n_samples: toy.SparseFeatures(4, 0.7).sample_active(n_samples, np.random.default_rng(0)),
            {"n_samples": 3},
            ("n_samples",),
        ),
        "toy_sweep": of_function(toy.toy_sweep, **SWEEP),
        "summarize_sweep": of_function(toy.summarize_sweep, sweep=table),
        "predict_sweep": of_function(toy.predict_sweep, summary=summary, predictors={"a": lambda n, alpha: floors}),
        "agreement_table": of_function(
            forecasting.agreement_table, measured=LOSSES, predictions={"a": LOSSES + 0.1}, strata=["a", "b", "a", "b"]
        ),
        "token_blocks": of_function(language_models.token_blocks, texts=TEXTS, tokenizer=tokenizer(), length=4),
        "student_config": of_function(
            students.student_config, lambda made: made.to_dict() and None, config=teacher().config, width=4
        ),
        "make_student": of_function(
            students.make_student, lambda made: None, teacher=teacher(), width=4, random_state=0
        ),
        "count_parameters": of_function(students.count_parameters, config=teacher().config),
        "distill_widths": Case(
            lambda **given: [s.score(TOKENS) for s in students.distill_widths(**STUDENT | given)],
            {"teacher": teacher(), "tokens": TOKENS, "widths": [4], "eval_tokens": TOKENS[:4], "random_state": 0},
            parameters_of(students.distill_widths),
        ),
        "distillation_kl": Case(
            language_models.distillation_kl,
            {"student": logits, "teacher": logits.flip(0)},
            parameters_of(language_models.distillation_kl),
        ),
        "parse_hook": of_function(language_models.parse_hook, hook="blocks.3.hook_mlp_out"),
        "dictionary_report": of_function(
            language_models.dictionary_report,
            teacher=teacher(),
            layer=0,
            autoencoder=fitted("autoencoder_of_teacher"),
            tokens=TOKENS,
            device="cpu",
        ),
        "measure_band": of_function(
            language_models.measure_band,
            lambda made: made.frame(),
            autoencoders=[fitted("autoencoder"), geofloor.SparseAutoencoder(8, **ENCODER)],
            X=ROWS,
            widths=WIDTHS,
            held_out=ROWS[:20],
            table_rows=ROWS,
        ),
        "measure_band with a teacher": of_function(
            language_models.measure_band,
            lambda made: made.floors(),
            autoencoders=[fitted("autoencoder_of_teacher")],
            X=fitted("extractor").transform(TOKENS),
            widths=WIDTHS,
            held_out=fitted("extractor").transform(TOKENS),
            teacher=teacher(),
            layer=0,
            tokens=TOKENS,
            device="cpu",
        ),
        "zero_width_kl": of_function(language_models.zero_width_kl, teacher=teacher(), tokens=TOKENS, device="cpu"),
        "forecast_table": of_function(
            forecasting.forecast_table,
            estimators={"a": geofloor.PowerLawCalibrator()},
            widths=WIDTHS,
            losses=LOSSES,
        ),
        "forecast_errors": of_function(
            forecasting.forecast_errors,
            estimator=geofloor.PowerLawCalibrator(),
            widths=WIDTHS,
            losses=LOSSES,
        ),
        "plan_distillation": Case(
            planned,
            {"teacher": teacher(), "texts": RNG.integers(N_TOKENS, size=(200, 8)), "n_tokens": 400, "device": "cpu"},
            parameters_of(geofloor.plan_distillation),
        ),
        "Plan": Case(lambda: repr(fitted("plan")), {}, ()),
        "Plan.decide": of_method("plan", "decide", width=4, target=0.05),
        "Plan.next_run": of_method("plan", "next_run", width=3),
        "Plan.add_runs": of_method("plan", "add_runs", lambda made: made.table.forecast, runs={6: 0.02}, n_steps=300),
        "Plan.plot": of_method("plan", "plot", lambda made: None, scale="log"),
        "Plan.report": of_method("plan", "report", path=new_path(".html")),
        "Plan.save": of_method("plan", "save", folder=new_path()),
        "Plan.load": of_function(geofloor.Plan.load, lambda made: made.table.forecast, folder=kept_plan()),
        "CapacityCalibrator": of_class(forecasting.CapacityCalibrator, fit["CapacityCalibrator"], predictor=floors),
        "Exponential": of_class(forecasting.Exponential, of_law),
        "PowerOfWidth": of_class(forecasting.PowerOfWidth, of_law),
        "PowerOfWidthAboveBaseline": of_class(forecasting.PowerOfWidthAboveBaseline, of_law),
        "Anchored": of_class(forecasting.Anchored, of_law, zero_width_loss=2.0),
        "EndsAtTeacher": of_class(forecasting.EndsAtTeacher, of_law, teacher_width=32),
        "AnchoredBothEnds": of_class(forecasting.AnchoredBothEnds, of_law, zero_width_loss=2.0, teacher_width=32),
        "AboveBottleneck": of_class(
            forecasting.AboveBottleneck,
            lambda made: geofloor.LossForecaster(made).fit([2], made.bound.predict([2])).predict([0, 2, 3]),
            bound=fitted("bottleneck"),
            exponent=1.0,
        ),
        "Calibrated": of_class(forecasting.Calibrated, of_law, predictor=floors, baseline=0.1),
        "CapacityCalibrator.fit": of_method("capacities", "fit", lambda made: made.predict(WIDTHS), **runs),
        "CapacityCalibrator.predict": of_method("capacities", "predict", widths=WIDTHS),
        "probe_table": of_function(
            probing.probe_table,
            states={"teacher": {"a": ROWS}, "student": {"a": ROWS[:, :2]}},
            concepts={"a": LABELS},
            probe=geofloor.ConceptProbe(random_state=0),
        ),
        "compare_probes": of_function(
            probing.compare_probes, probe=fitted("probe"), reference=copy.deepcopy(fitted("probe"))
        ),
        "feature_probes": of_function(
            probing.feature_probes,
            states=CODES.toarray() @ RNG.normal(size=(8, 4)),
            codes=CODES,
            latents=[0, 1],
            auc=True,
            random_state=0,
        ),
        "load_teacher": Case(datasets.load_teacher, {}, ()),
        "load_local_corpus": of_function(datasets.load_local_corpus, take, packages=["joblib"]),
        "load_paper_tables": Case(datasets.load_paper_tables, {}, ()),
        "load_published_losses": Case(datasets.load_published_losses, {}, ()),
        "load_concepts": of_function(
            datasets.load_concepts, lambda made: None, concepts=["question"], n_per_class=1, packages=["joblib"]
        ),
        "pile_concepts": of_function(
            datasets.pile_concepts, lambda made: None, dataset=PILE, concepts=["code"], n_per_class=1
        ),
    }
    for display, way, arguments in CALLS:
        name = display.__name__ + (f".{way}" if way else "")
        if name in found:
            found[f"{name} again"] = drawing(display, way, arguments)
        else:
            found[name] = drawing(display, way, arguments)
    for name in ("DistilledFloorsDisplay", "DistillationSummaryDisplay"):
        found[f"{name}.from_students"] = drawing(getattr(displays, name), "from_students", {"students": []})
    return found


# What is handed out, warnings, and a base class: nobody calls these with arguments of their own.
RESULTS = {
    "NonMonotoneCapacityWarning", "Shares", "Blocks", "PowerLawTail", "OutlierRowsWarning", "SweepError",
    "Allocation", "Division", "ChargedFeatures", "WidthAllocation",
    "ForecastErrors", "Decision", "StepsNeeded", "StudentLoss", "DictionaryReport",
    "FloorBand", "Law", "ProbeComparison", "Document", "NextRun",
}  # fmt: skip


def documented() -> Iterator[tuple[str, Any]]:
    """Yield the name and the object of everything in the API reference."""
    module: ModuleType = geofloor
    pages = sorted((Path(__file__).parents[1] / "docs/api").glob("*.rst"))
    for line in (line for page in pages for line in page.read_text(encoding="utf-8").splitlines()):
        if match := re.fullmatch(r"\.\. currentmodule:: (\S+)", line):
            module = importlib.import_module(match[1])
        elif match := re.fullmatch(r"   (\w+)", line):
            yield match[1], getattr(module, match[1])


def generator() -> Iterator[float]:
    yield 1.0


def mapped(array: np.ndarray) -> np.ndarray:
    handle, path = tempfile.mkstemp(dir=FOLDER.name)
    os.close(handle)
    np.asarray(array).tofile(path)
    return np.memmap(path, dtype=array.dtype, mode="r", shape=array.shape)


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def malformed() -> Any:
    matrix = sp.csr_array(np.eye(3))
    matrix.indices[1] = 10**6
    return matrix


# Each is made anew for each call.
ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "zero": lambda: 0,
    "negative": lambda: -1,
    "two": lambda: 2,
    "half": lambda: 0.5,
    "3.5": lambda: 3.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "1e30": lambda: 1e30,
    "1e-320": lambda: 1e-320,
    "huge": lambda: 10**400,
    "int8": lambda: np.int8(3),
    "uint64": lambda: np.uint64(2),
    "float32": lambda: np.float32(0.5),
    "float16": lambda: np.float16(0.5),
    "bool_": lambda: np.bool_(True),
    "Fraction": lambda: Fraction(1, 2),
    "Decimal": lambda: Decimal("0.5"),
    "complex": lambda: 1j,
    "no text": str,
    "text": lambda: "nothing of the kind",
    "digit": lambda: "2",
    "null": lambda: "a\0b",
    "surrogate": lambda: "\udc80",
    "bytes": lambda: b"bytes",
    "set": lambda: {1.5},
    "dict": lambda: {"a": 1},
    "no dict": dict,
    "keys": lambda: {1: None, object(): 2},
    "generator": generator,
    "object": object,
    "type": lambda: int,
    "function": lambda: generator,
    "no list": list,
    "list": lambda: [1, 2, 3],
    "ragged": lambda: [[1], [2, 3]],
    "texts": lambda: ["a", "b"],
    "Nones": lambda: [None, 1.0],
    "empty": lambda: np.array([]),
    "empty rows": lambda: np.empty((0, 4)),
    "empty columns": lambda: np.empty((4, 0)),
    "0-d": lambda: np.array(2.0),
    "3-D": lambda: np.ones((2, 3, 4)),
    "masked": lambda: np.ma.masked_array([1.0, 2.0, 3.0], [True, False, False]),
    "masked 0-d": lambda: np.ma.masked,
    "dates": lambda: np.array(["2020-01-01"] * 3, dtype="datetime64[D]"),
    "durations": lambda: np.array([1, 2, 3], dtype="timedelta64[s]"),
    "date": lambda: date(2020, 1, 1),
    "imaginary": lambda: np.array([1j, 2j, 3j]),
    "objects": lambda: np.array([None, 1.0, "a"], dtype=object),
    "fractions": lambda: np.array([Fraction(1, 2), Decimal("0.5"), 1], dtype=object),
    "huge numbers": lambda: np.array([10**400, 1, 2], dtype=object),
    "words": lambda: np.array(["a", "b", "c"]),
    "records": lambda: np.zeros(3, dtype=[("a", float)]),
    "NaNs": lambda: np.full(3, np.nan),
    "ones": lambda: np.ones(3),
    "large": lambda: np.full(3, 1e308),
    "tiny": lambda: np.full(3, 1e-320),
    "bfloat16": lambda: torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16),
    "gradient": lambda: torch.ones(3, requires_grad=True),
    "sparse tensor": lambda: torch.eye(3).to_sparse(),
    "meta tensor": lambda: torch.ones(3, device="meta"),
    "frame": lambda: pd.DataFrame({"a": [1.0, 2.0, 3.0]}),
    "frame of text": lambda: pd.DataFrame({"a": ["x", "y", None]}),
    "no frame": pd.DataFrame,
    "Series": lambda: pd.Series([3.0, 2.0, None]),
    "NA": lambda: pd.NA,
    "CSR": lambda: sp.csr_array(np.eye(3)),
    "COO": lambda: sp.coo_array(np.eye(3)),
    "malformed": malformed,
    "path": lambda: Path("nowhere/at/all"),
    "folder": lambda: Path("."),
    "slice": lambda: slice(2),
    "exception": lambda: ValueError("no"),
    "module": lambda: np,
    "namespace": lambda: SimpleNamespace(shape=(3,), dtype="float"),
}


def holed(array: np.ndarray) -> np.ndarray:
    objects = array.astype(object)
    objects.flat[0] = None
    return objects


# The valid value of an array argument, in another form.
FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "as float16": lambda array: array.astype(np.float16),
    "as int8": lambda array: array.astype(np.int8),
    "as Fortran": np.asfortranarray,
    "as reversed": lambda array: array[::-1],
    "as big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "as read-only": lambda array: read_only(array.copy()),
    "as mapped": mapped,
    "as bfloat16": lambda array: torch.tensor(array).to(torch.bfloat16),
    "as gradient": lambda array: torch.tensor(array, dtype=torch.float64, requires_grad=True),
    "as list": lambda array: array.tolist(),
    "as frame": pd.DataFrame,
    "as nullable": lambda array: pd.DataFrame(array).convert_dtypes(),
    "as objects": lambda array: array.astype(object),
    "as objects with None": holed,
    "as text": lambda array: array.astype(str),
    "as masked": lambda array: np.ma.masked_array(array, mask=[True] + [False] * (array.size - 1)),
    "as unmasked": np.ma.masked_array,
    "as column": lambda array: array[..., None],
    "as row": lambda array: array[None],
    "as first": lambda array: array[:1],
    "as flat": np.ravel,
    "as negative": lambda array: -array,
    "as zeros": np.zeros_like,
    "as large": lambda array: array.astype(float) * 1e300,
    "as small": lambda array: array.astype(float) * 1e-310,
    "as CSR": lambda array: sp.csr_array(np.atleast_2d(array)),
    "as NaN": lambda array: np.where(np.arange(array.size).reshape(array.shape) == 0, np.nan, array),
    "as inf": lambda array: np.where(np.arange(array.size).reshape(array.shape) == 0, np.inf, array),
}


def kinds_for(case: Case, parameter: str) -> list[str]:
    """Return the names of what may replace an argument."""
    forms = FORMS if as_array(case.arguments.get(parameter)) is not None else {}
    return [kind for kind in (*ODD, *forms) if kind not in UNTRIED.get(parameter, ())]


def as_array(value: Any) -> np.ndarray | None:
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if sp.issparse(value):
        return value.toarray()
    if isinstance(value, np.ndarray) or (isinstance(value, list) and value and isinstance(value[0], int | float)):
        return np.asarray(value)
    return None


def odd(kind: str, valid: Any) -> Any:
    return ODD[kind]() if kind in ODD else FORMS[kind](as_array(valid).copy())


def fingerprint(value: Any) -> Any:
    """Return what differs if an argument was changed."""
    if isinstance(value, torch.nn.Module):
        return value.training, {name: fingerprint(tensor) for name, tensor in value.state_dict().items()}
    if isinstance(value, torch.Tensor):
        if value.is_sparse or value.is_meta:
            return str(value)
        return str(value.dtype), value.requires_grad, value.detach().float().numpy().tobytes()
    if sp.issparse(value):
        return value.shape, value.data.tobytes(), str(getattr(value, "indices", None)), str(value.dtype)
    if isinstance(value, pd.DataFrame | pd.Series):
        return value.to_json(default_handler=str), list(value.index), str(value.dtypes)
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.flags.writeable, value.strides, repr(value.tolist())
    if isinstance(value, Mapping):
        return [(repr(key), fingerprint(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [fingerprint(item) for item in value]
    if isinstance(value, Iterator):
        return None
    return repr(value)


def numbers_in(value: Any) -> Iterator[float]:
    """Yield every number of a result."""
    if isinstance(value, float | np.floating):
        yield float(value)
    elif sp.issparse(value):
        yield from value.data.ravel().tolist()
    elif isinstance(value, torch.Tensor):
        yield from numbers_in(value.detach().float().numpy())
    elif isinstance(value, np.ndarray):
        if value.dtype.kind == "f":
            yield from value.astype(float).ravel().tolist()
    elif isinstance(value, pd.DataFrame):
        for name in value:
            yield from numbers_in(value[name].to_numpy())
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from numbers_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from numbers_in(item)
    elif hasattr(value, "distortions"):
        yield from numbers_in([value.capacities, value.distortions])


def global_state() -> dict[str, Any]:
    return {
        "NumPy's generator": fingerprint(list(np.random.mtrand._rand.get_state(legacy=True))),
        "torch's generator": fingerprint(torch.random.get_rng_state()),
        "warnings.filters": repr(warnings.filters),
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "errors": np.geterr(),
        "folder": os.getcwd(),
    }


def is_finite(value: Any) -> bool:
    if sp.issparse(value):  # some are malformed, and toarray would write outside of memory
        value = value.data
    try:
        array = as_array(value) if as_array(value) is not None else np.asarray(value, dtype=float)
        return bool(np.isfinite(np.asarray(array).astype(float)).all())
    except (ValueError, TypeError, OverflowError, RuntimeError):
        return not isinstance(value, pd.DataFrame | pd.Series)


class Outcome(NamedTuple):
    kind: str
    fault: str | None


def outcome(name: str, kinds: Mapping[str, str]) -> Outcome:
    """Call a case with some arguments replaced, and describe a forbidden outcome."""
    case = cases()[name]
    replaced = {key: odd(kind, case.arguments.get(key)) for key, kind in kinds.items()}
    arguments = case.arguments | replaced
    random = any("random_state" in key or key == "cv" for key in kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, state = fingerprint(arguments), global_state()
        fault, result = None, None
        try:
            result = case.call(**arguments)
            kind = "success"
        except (ValueError, TypeError, NotFittedError, ImportError, OSError) as error:
            kind = type(error).__name__
            words = {*kinds, *ALIASES.get(name, ())} | ({"X"} if kinds.keys() & DATA else set())
            named = any(re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", str(error)) for word in words)
            if isinstance(error, OSError):  # these name the path, which is the value
                named = named or any(
                    str(value) in str(error) or repr(value) in str(error) for value in replaced.values()
                )
            if not named and not is_accepted(name, kinds, error):
                fault = f"{kind} names none of {sorted(words)}: {str(error)[:300]}"
        except Exception as error:
            kind = type(error).__name__
            fault = None if is_accepted(name, kinds, error) else f"{kind}: {str(error)[:300]}"
        finally:
            plt.close("all")
        after = global_state()
        changed = [key for key in state if after[key] != state[key] and not (random and key == "NumPy's generator")]
        if changed:
            fault = f"changed: {changed}"
        if fingerprint(arguments) != before:
            fault = "changed an argument"
    if kind == "success" and fault is None and all(is_finite(value) for value in replaced.values()):
        wrong = np.isnan if EXTREME & set(kinds.values()) else lambda number: not np.isfinite(number)
        bad = [number for number in numbers_in(result) if wrong(number)]
        if bad and name not in NAN_DOCUMENTED:
            fault = f"{len(bad)} numbers are not finite: {bad[:3]}"
    return Outcome(kind, fault)


# Arguments that reach a user under another name.
DATA = {"X", "y", "codes", "tokens", "importances", "widths", "measured", "values"}
ALIASES: dict[str, tuple[str, ...]] = {
    "PredictionDisplay": ("predicted",),  # one of the two has another length
    "ErrorDisplay": ("errors",),
    "DistillationSummaryDisplay": ("critical_widths",),
    "FloorGridDisplay.from_summary": ("method",),
    "CollapseDisplay.from_summary": ("method",),
    "FloorDisplay.from_predictor": ("floors",),  # of no predictor
    "ConceptProbe.split": ("groups",),
    "ToyModel.fit": ("width",),  # too many for the data
    "toy_sweep": ("widths", "learning_rate"),  # in the error of the part that failed
    "LossForecaster.fit(n_steps=...)": ("n_steps",),  # one budget for each of other widths
    "distill_widths": ("width",),
    "evaluate_student": ("tokens",),  # outside the first n_vocabulary
    "load_concepts": ("n_per_class",),
    "pile_concepts": ("n_per_class",),
    "probe_table": ("reference",),
    "cutoff_curve": ("capacities",),
    "CapacityDisplay.from_methods": ("alpha", "capacities"),
    "SpectrumDisplay.from_importances": ("method",),
    "CalibrationDisplay.from_calibrator": ("line", "X"),
    "feature_probes": ("tokens",),  # too few for parts of the given sizes
}
NAN_DOCUMENTED: dict[str, str] = {
    "PowerLawCalibrator.predict": "infinite at width 0",
    "LossForecaster.predict": "infinite at width 0, by a power",
    "LossForecaster.min_steps": "infinite if no number of steps is enough",
    "LossForecaster.decide": "the same",
    "evaluate_student": "no standard error of one sequence",
    "forecast_table": "no forecast from two runs for laws of three parameters",
    "forecast_errors": "at the two widths that were fitted to",
    "probe_table": "the reference has no change",
    "load_paper_tables": "what the paper does not give",
    "load_published_losses": "what the source does not give",
    "agreement_table": "no correlation of a constant, no relative error where nothing is above",
    "feature_probes": "no score of what never varies among the test tokens",
    "power_law_tail": "too few values for a fit",
    "measure_band": "too few features for a fit of the tail",
    "AffineCalibrator.decompose": "percent of a loss of 0",
}
# What is not to be mended, with the reason: case, argument (None: any), kinds (None: any).
DECLINED: list[tuple[str, str | None, set[str] | None, str]] = [
    ("*", None, {"module"}, "a module's attributes are those of an array, and its own error says so"),
    ("*", None, {"function"}, "a user's own function is called, and fails with its own error"),
    ("FeatureStaircaseDisplay", "statistic", {"malformed"}, "the label is the text of what is given, as with `unit`"),
    (
        "CalibrationDisplay",
        "label",
        {"CSR", "COO", "malformed"},
        "matplotlib's own error about a label",
    ),
    ("AccuracyDisplay", "predicted", {"malformed"}, "the label is the text of what is given, as with `unit`"),
    ("zero_width_kl", "temperature", {"1e-320"}, "legal; its overflow is reported as logits that are not finite"),
    ("*", "unit", {"malformed"}, "the label is the text of what is given, which can't be written"),
    ("*", "input_features", None, "checked by scikit-learn, as in all of its transformers"),
    ("DistilledStudent", "temperature", {"1e-320"}, "legal; its overflow is reported as a loss that is not finite"),
    ("DistilledStudent", "weight_decay", {"1e30"}, "legal; its overflow is reported as a loss that is not finite"),
    ("evaluate_student", "temperature", {"1e-320"}, "legal; its overflow is reported as a loss that is not finite"),
    ("distillation_kl", "temperature", {"1e-320"}, "legal; its overflow is reported as logits that are not finite"),
    ("pile_concepts", "dataset", {"records"}, "records of NumPy say themselves that they lack the field"),
    ("toy_sweep", "learning_rate", {"1e30"}, "legal; the parts that failed are reported, with their error"),
]
# Messages of scikit-learn about data, and of displays about columns, which they show.
PATTERNS = re.compile(
    r"Expected 2D array|Expected a 2-dimensional|Found array with|inconsistent numbers of samples|"
    r"float\(\) argument must be|setting an array element with a sequence|at least one array or dtype|"
    r"has no len\(\)|len\(\) of unsized|could not convert string to float|Unable to convert array|"
    r"is expecting \d+ features|Complex data not supported|dtype='numeric' is not compatible|Input contains|"
    r"Unknown label type|Supported target types|cannot be used to seed|Seed must be between|n_splits|"
    r"cannot do both at once|lacks the columns|has no column"
)
# Numbers whose products with others are beyond float64: infinity, not NaN, is what these are.
EXTREME = {"large", "as large", "tiny", "as small", "1e30", "1e-320"}
# Counts of processes that a machine may not have.
UNTRIED = {"n_jobs": {"negative", "two", "int8", "uint64", "0-d"}}


def is_accepted(name: str, kinds: Mapping[str, str], error: BaseException) -> bool:
    """Whether an error need not name its argument."""
    for case, argument, some, _ in DECLINED:
        if case in ("*", name) and any(
            argument in (None, key) and (some is None or kind in some) for key, kind in kinds.items()
        ):
            return True
    return isinstance(error, ValueError | TypeError) and bool(PATTERNS.search(str(error)))
