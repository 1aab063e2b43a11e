import pickle

import joblib
import numpy as np
import pytest
from small_models import BLOCKS, MODEL, UNEQUAL, as_text, gpt_neox, word_tokenizer

from geofloor import ActivationExtractor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    MODEL.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def test_pickles_leave_out_a_model_given_by_name(folder, tmp_path):
    extractor = ActivationExtractor(str(folder), 1, device="cpu").fit()
    joblib.dump(extractor, tmp_path / "extractor.joblib")
    assert (tmp_path / "extractor.joblib").stat().st_size < 3000
    again = joblib.load(tmp_path / "extractor.joblib")
    np.testing.assert_array_equal(again.transform(BLOCKS), extractor.transform(BLOCKS))


def test_pickles_hold_a_model_given_as_an_object():
    again = pickle.loads(pickle.dumps(ActivationExtractor(gpt_neox(), 1, tokenizer=word_tokenizer()).fit()))
    expected = ActivationExtractor(MODEL, 1).transform(UNEQUAL)
    np.testing.assert_array_equal(again.transform(as_text(UNEQUAL)), expected)
