import numpy as np
import pytest
from small_students import new_teacher, student

from geofloor import DistilledStudent
from geofloor.students import _saved

# Most fits here take a few steps, because how far training comes is not what they test.
pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


def test_entries_that_files_leave_out_are_refused_only_if_the_model_needs_them(tokens, tmp_path, monkeypatch):
    fitted = student(new_teacher(use_mrope=False)).fit(tokens)
    assert fitted.model_.config.use_mrope is False
    fitted.save(tmp_path / "saved")
    np.testing.assert_array_equal(DistilledStudent.load(tmp_path / "saved").predict(tokens), fitted.predict(tokens))
    names = _saved._names("gpt_neox") - {"hidden_act"}
    monkeypatch.setattr(_saved, "_names", lambda _: names)
    fitted = student(new_teacher(hidden_act="relu")).fit(tokens)
    with pytest.raises(ValueError, match=r"can't be made again.*\['hidden_act'\], which no file keeps"):
        fitted.save(tmp_path / "other")
