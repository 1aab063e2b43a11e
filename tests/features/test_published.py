import json
import pickle

import numpy as np
import pytest
import torch
from published_files import WRITERS, D, F, K, X, qwen_scope, saelens, sparsify, weights, write
from safetensors.numpy import save_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline

from geofloor import FeatureStatistics, FloorPredictor, SparseAutoencoder
from geofloor.features import load_autoencoder
from geofloor.features._dictionary_hub import choose


def close(found, wanted):
    return np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted)


@pytest.mark.parametrize("name", WRITERS)
def test_codes_and_reconstructions_are_those_of_the_authors(name, tmp_path):
    made = WRITERS[name](tmp_path)
    sae = load_autoencoder(made.path, **made.options)
    codes = sae.transform(X)
    np.testing.assert_array_equal(codes.toarray() != 0, made.codes != 0)
    assert close(codes.toarray(), made.codes)
    assert close(sae.inverse_transform(codes), made.reconstruction)
    np.testing.assert_allclose(np.linalg.norm(sae.decoder_, axis=1), 1.0, rtol=1e-6)
    sae.save(tmp_path / "ours.safetensors")
    again = SparseAutoencoder.load(tmp_path / "ours.safetensors")
    assert (again.transform(X) != codes).nnz == 0
    assert again.source_ == sae.source_
    assert set(sae.source_) == {"format", "model", "hook"}


@pytest.mark.parametrize("name", ["saelens standard", "saelens jumprelu", "saelens topk", "sparsify", "llama scope"])
def test_what_is_written_for_saelens_has_the_same_codes(name, tmp_path):
    made = WRITERS[name](tmp_path / "theirs")
    sae = load_autoencoder(made.path, **made.options)
    sae.save(tmp_path / "ours", format="saelens")
    again = load_autoencoder(tmp_path / "ours")
    assert close(again.transform(X).toarray(), sae.transform(X).toarray())
    assert again.source_["hook"] == sae.source_["hook"]


def test_weights_in_either_orientation_are_the_same():
    w = weights()
    arguments = {"activation": "jumprelu", "threshold": w["t"], "centered": False}
    made = [
        SparseAutoencoder.from_weights(encoder, w["b"], decoder, w["d"], **arguments)
        for encoder, decoder in ((w["E"], w["D"]), (w["E"].T, w["D"].T))
    ]
    pre = X @ w["E"].T + w["b"]
    wanted = np.maximum(pre, 0) * (pre > w["t"]) * np.linalg.norm(w["D"], axis=1)
    for sae in made:
        assert close(sae.transform(X).toarray(), wanted)


def test_a_direction_of_zeros_never_fires(tmp_path):
    w = weights()
    w["D"][3] = 0.0
    sae = SparseAutoencoder.from_weights(w["E"], w["b"] + 5, w["D"], w["d"])
    assert sae.transform(X)[:, [3]].nnz == 0
    assert close(
        sae.inverse_transform(sae.transform(X)), np.maximum((X - w["d"]) @ w["E"].T + w["b"] + 5, 0) @ w["D"] + w["d"]
    )


def test_training_goes_on_from_weights():
    w = weights()
    sae = SparseAutoencoder.from_weights(w["E"], w["b"], w["D"], w["d"], activation="relu")
    before = sae.score(X)
    sae.set_params(learning_rate=0.01, batch_size=10)
    for _ in range(20):
        sae.partial_fit(X)
    assert sae.score(X) > before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "topk"}, r"l0 is missing with activation='topk'"),
        ({"l0": 3}, r"l0 has no effect with activation='relu'"),
        ({"activation": "jumprelu"}, r"threshold is missing"),
        ({"activation": "topk", "l0": F + 1}, rf"l0={F + 1} must be"),
        ({"W_enc": np.ones((F, D + 1))}, r"W_enc has shape \(20, 7\)"),
        ({"b_enc": np.ones((F, 2))}, r"b_enc has shape \(20, 2\)"),
        ({"W_dec": np.full((F, D), np.nan)}, r"W_dec"),
        ({"centered": "yes"}, r"centered=.yes."),
    ],
)
def test_weights_that_do_not_fit_are_named(changes, message):
    w = weights()
    arguments = {"W_enc": w["E"], "b_enc": w["b"], "W_dec": w["D"], "b_dec": w["d"]} | changes
    with pytest.raises(ValueError, match=message):
        SparseAutoencoder.from_weights(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalize_activations": "layer_norm"}, "each row by its own norm"),
        ({"normalize_activations": "covariance_whitening"}, "use the final file"),
        ({"normalize_activations": True}, "give scaling_factor"),
        ({"architecture": "temporal"}, "architecture='temporal'"),
        ({"d_out": 3}, "transcoder"),
    ],
)
def test_what_has_no_exact_form_is_refused(changes, message, tmp_path):
    made = saelens(tmp_path, "standard", **changes)
    with pytest.raises(ValueError, match=message):
        load_autoencoder(made.path)


@pytest.mark.parametrize("changes", [{"transcode": True}, {"activation": "tanh"}, {"k": 0}, {"k": "all"}, {"k": F + 1}])
def test_a_configuration_out_of_range_is_refused(changes, tmp_path):
    made = sparsify(tmp_path, "topk", **changes)
    with pytest.raises(ValueError, match=r"sae.safetensors' can't be used: it"):
        load_autoencoder(made.path)


def test_the_model_of_qwen_scope_is_in_the_name_of_its_repository(tmp_path):
    sae = load_autoencoder(qwen_scope(tmp_path).path)
    assert (sae.source_["model"], sae.source_["hook"]) == ("Qwen/Qwen3-1.7B-Base", "model.layers.3.output")


def test_one_of_several_dictionaries_is_chosen_by_file(tmp_path):
    made = sparsify(tmp_path, "topk")
    write(tmp_path / "layers.11", "sae.safetensors", {"encoder.weight": np.ones((2, 2), "f4")})
    with pytest.raises(ValueError, match=r"2 files of weights: 'layers.10/sae.safetensors', .* choose one by file"):
        load_autoencoder(tmp_path)
    sae = load_autoencoder(tmp_path, file="layers.10")
    assert close(sae.transform(X).toarray(), made.codes)
    assert sae.source_["hook"] == "layers.10"
    with pytest.raises(ValueError, match="leaves the folder"):
        load_autoencoder(tmp_path / "layers.11", file="../layers.10")
    with pytest.raises(FileNotFoundError, match="layers.12"):
        load_autoencoder(tmp_path, file="layers.12")


def test_a_finished_file_comes_before_the_steps_of_its_training(tmp_path, monkeypatch):
    made = sparsify(tmp_path, "topk")
    folder = tmp_path / "layers.10"
    write(folder / "checkpoints", "ae_100.safetensors", {"encoder.weight": np.ones((2, 2), "f4")})
    assert close(load_autoencoder(folder).transform(X).toarray(), made.codes)
    names = ["layers.10/checkpoints/ae_100.safetensors", "layers.10/sae.safetensors", "layers.11/sae.safetensors"]
    assert choose("someone/some-dictionary", names, "layers.10") == names[1]
    assert choose("someone/some-dictionary", names, names[0]) == names[0]
    with pytest.raises(ValueError, match="has 3 files of weights"):
        choose("someone/some-dictionary", names, None)


class Hostile:
    def __reduce__(self):
        return eval, ("print('ran')",)


def test_a_pickle_of_more_than_tensors_is_refused_and_not_run(tmp_path, capsys):
    for save in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        save({"W_enc": Hostile()}, tmp_path / "ae.pt")
        with pytest.raises(ValueError, match=r"ae.pt' is (damaged, or a pickle|truncated)"):
            load_autoencoder(tmp_path)
    np.savez(tmp_path / "ae.npz", W_enc=np.array([Hostile()], dtype=object))
    with pytest.raises(ValueError, match=r"ae.npz' is truncated or no .npz file"):
        load_autoencoder(tmp_path / "ae.npz")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["saelens standard", "dictionary_learning AutoEncoder", "gemma scope"])
def test_truncated_files_are_refused_by_name(name, tmp_path):
    folder = WRITERS[name](tmp_path).path
    [path] = [each for each in folder.rglob("*") if each.suffix in (".safetensors", ".pt", ".npz")]
    content = path.read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=path.name):
            load_autoencoder(folder)


def test_foreign_files_are_refused(tmp_path):
    save_file({"weight": np.ones((3, 3), "f4")}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no configuration that tells their format; give\s+format"):
        load_autoencoder(tmp_path)
    (tmp_path / "cfg.json").write_text("[1, NaN]")
    with pytest.raises(ValueError, match=r"cfg.json"):
        load_autoencoder(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": 3, "d_sae": 3}))
    with pytest.raises(ValueError, match="lacks the tensor 'W_dec'"):
        load_autoencoder(tmp_path, format="saelens")


def test_arguments_without_effect_are_errors(tmp_path):
    path = saelens(tmp_path, "standard").path
    for options in ({"l0": 3}, {"scaling_factor": 2.0}, {"revision": "main"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}=.*has no effect"):
            load_autoencoder(path, **options)


def test_thresholds_never_set_are_told(tmp_path):
    w = weights()
    tensors = {"encoder.weight": w["E"], "encoder.bias": w["b"], "decoder.weight": w["D"].T, "b_dec": w["d"]}
    tensors |= {"k": np.array(K), "threshold": np.array(-1.0, "f4")}
    path = write(tmp_path, "ae.pt", tensors, {"trainer": {"dict_class": "BatchTopKSAE"}}, "config.json")
    with pytest.warns(UserWarning, match="threshold below 0"):
        sae = load_autoencoder(path)
    assert (sae.transform(X).toarray() > 0).sum() == (np.maximum((X - w["d"]) @ w["E"].T + w["b"], 0) > 0).sum()


def test_a_repository_out_of_reach_says_what_to_do():
    with pytest.raises(OSError, match="can't be fetched from the hub.*download the weights"):
        load_autoencoder("someone/some-dictionary")


def test_of_a_repository_only_what_is_needed_is_fetched(tmp_path, monkeypatch):
    made = sparsify(tmp_path, "topk")
    save_file({"a": np.ones(1, "f4")}, tmp_path / "other.safetensors")
    fetched = []

    def download(repository, name, revision=None):
        fetched.append(name)
        return str(tmp_path / name)

    save_file({"a": np.ones(1, "f4")}, tmp_path / "another.safetensors")
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repository, revision=None: names)
    sae = load_autoencoder("someone/some-dictionary", file="layers.10")
    assert close(sae.transform(X).toarray(), made.codes)
    assert sorted(fetched) == ["layers.10/cfg.json", "layers.10/sae.safetensors"]
    with pytest.raises(ValueError, match="has 2 files of weights"):
        load_autoencoder("someone/some-dictionary")


def test_a_loaded_dictionary_is_a_step_of_a_pipeline(tmp_path):
    sae = load_autoencoder(WRITERS["gemma scope"](tmp_path).path)
    with pytest.warns(ConvergenceWarning, match="alpha_"):  # random dictionaries have dense codes
        pipeline = make_pipeline(FrozenEstimator(sae), FeatureStatistics(), FloorPredictor()).fit(X)
    assert pipeline[-1].predict([2]) > 0
