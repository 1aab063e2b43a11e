import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_students import assert_same, student

from geofloor import DistilledStudent
from geofloor._training.checkpoints import read_tensors, write_tensors

# Most fits here take a few steps, because how far training comes is not what they test.
pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize(
    "odd",
    [
        {"learning_rate": np.float32(1e-2)},
        {"temperature": np.float16(2)},
        {"tol": np.float64(0.01), "n_steps": np.int64(20)},
        {"device": torch.device("cpu"), "random_state": np.int64(0)},
    ],
)
def test_numbers_of_other_libraries_are_kept_in_files(teacher, tokens, tmp_path, odd):
    fitted = student(teacher, checkpoint_path=tmp_path / "checkpoint", **odd).fit(tokens)
    fitted.save(tmp_path / "saved")
    assert_same(DistilledStudent.load(tmp_path / "saved", device="cpu"), fitted)
    assert_same(clone(fitted).fit(tokens), fitted)  # from its checkpoint


def test_a_loaded_student_is_scored_by_the_teacher_that_is_given(teacher, teacher_path, tokens, tmp_path):
    fitted = student(teacher_path, model_kwargs={"dtype": "float32"}).fit(tokens)
    fitted.save(tmp_path / "saved")
    loaded = DistilledStudent.load(tmp_path / "saved", teacher=teacher, device="cpu")
    assert loaded.model_kwargs is None
    assert loaded.score(tokens) == fitted.score(tokens)


def test_a_student_of_one_held_out_sequence_has_no_error_after_loading_either(teacher, tokens, tmp_path):
    fitted = student(teacher, n_steps=5, eval_sequences=1).fit(tokens)
    fitted.save(tmp_path / "saved")
    assert np.isnan([fitted.floor_error_, DistilledStudent.load(tmp_path / "saved").floor_error_]).all()


def test_save_and_load(teacher, teacher_path, tokens, tmp_path):
    path = tmp_path / "student.safetensors"
    fitted = student(teacher_path).fit(tokens)
    fitted.save(path)
    loaded = DistilledStudent.load(path, device="cpu")
    assert_same(loaded, fitted)
    assert loaded.get_params() == {**fitted.get_params(), "teacher": None}
    np.testing.assert_array_equal(loaded.predict(tokens), fitted.predict(tokens))
    with pytest.raises(ValueError, match=f"names the teacher '{teacher_path}', which is not loaded from.*teacher="):
        loaded.score(tokens)
    assert loaded.set_params(teacher=teacher_path).score(tokens) == fitted.score(tokens)
    assert (loaded.n_parameters_, loaded.converged_) == (fitted.n_parameters_, fitted.converged_)

    student(teacher).fit(tokens).save(path)
    loaded = DistilledStudent.load(path, device="cpu")
    np.testing.assert_array_equal(loaded.predict(tokens), fitted.predict(tokens))
    with pytest.raises(ValueError, match="teacher=None must be"):
        loaded.score(tokens)
    assert DistilledStudent.load(path, teacher=teacher, device="cpu").score(tokens) == fitted.score(tokens)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="truncated"):
        DistilledStudent.load(path)


def test_a_file_without_the_length_of_sequences_is_read(teacher, tokens, tmp_path):
    fitted = student(teacher).fit(tokens)
    assert fitted.sequence_length_ == 12
    fitted.save(tmp_path / "saved")
    assert DistilledStudent.load(tmp_path / "saved").sequence_length_ == 12
    tensors, metadata = read_tensors(tmp_path / "saved", kind="geofloor distilled student")
    del metadata["fitted"]["sequence_length_"]
    write_tensors(tmp_path / "older", tensors, kind="geofloor distilled student", metadata=metadata)
    loaded = DistilledStudent.load(tmp_path / "older")
    assert loaded.sequence_length_ is None
    loaded.save_pretrained(tmp_path / "folder")
    assert "20 steps of 8 sequences |" in (tmp_path / "folder" / "README.md").read_text()
