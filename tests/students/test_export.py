import re

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from sklearn.exceptions import NotFittedError
from small_models import word_tokenizer
from small_students import N_VOCABULARY, Padded, new_teacher, student
from transformers import AutoModelForCausalLM, AutoTokenizer

from geofloor import BottleneckPredictor, DistilledStudent
from geofloor.students import make_student

pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def named_teacher(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("private") / "small|teacher"
    teacher.save_pretrained(path)
    word_tokenizer(N_VOCABULARY - 1).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def fitted(named_teacher):
    tokens = np.random.default_rng(0).integers(N_VOCABULARY, size=(60, 12))
    return student(named_teacher).fit(tokens), tokens


@torch.no_grad()
def logits(model, tokens):
    return model(torch.from_numpy(tokens)).logits.numpy()


def test_a_folder_is_that_of_transformers(fitted, named_teacher, tmp_path):
    fitted, tokens = fitted
    fitted.save_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(logits(model, tokens), logits(fitted.model_, tokens))
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("7 12")["input_ids"] == [7, 12]
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", "geofloor"],
    }
    for line in (
        "| Teacher | the model in a folder 'small\\|teacher', width 16, ",
        f"| Student | width 8, 1 head, {fitted.n_parameters_:,} parameters |",
        f"| Loss on held-out text | {fitted.floor_:.4g} ± {fitted.floor_error_:.2g} (standard error over sequences)",
        "| Temperature | 2 |",
        "| Training | 20 steps of 8 sequences of 12 tokens: 96 tokens per step, 1,920 in all |",
        "| Start | random weights |",
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        'evaluate_student("path/to/this/folder", teacher, tokens, temperature=2)',
    ):
        assert line in card.content
    assert not [
        file.name for file in (tmp_path / "out").iterdir() if str(named_teacher.parent).encode() in file.read_bytes()
    ]


def test_the_card_of_a_teacher_of_the_hub_with_a_bound(tokens, tmp_path):
    teacher = new_teacher()
    teacher.config._name_or_path = "owner/small-teacher"
    fitted = student(teacher, init="principal").fit(tokens)
    settings = {"widths": [8], "n_positions": 40, "n_steps": 2, "random_state": 0, "device": "cpu"}
    bound = BottleneckPredictor(teacher, **settings).fit(tokens)
    fitted.save(tmp_path / "student")
    loaded = DistilledStudent.load(tmp_path / "student", teacher=teacher)
    loaded.save_pretrained(tmp_path / "out", bound=bound)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "owner/small-teacher"
    low, high = bound.predict([8], return_bounds=True)[1][0]
    assert f"| Least loss of any student of this width | {low:.4g} to {high:.4g} nats per token" in card.content
    assert "of 12 tokens: 96 tokens per step" in card.content
    assert "| Start | the teacher's principal directions |" in card.content
    assert 'AutoTokenizer.from_pretrained("owner/small-teacher")' in card.content
    assert 'evaluate_student("path/to/this/folder", "owner/small-teacher", tokens' in card.content
    assert not list((tmp_path / "out").glob("tokenizer*"))
    for wrong, kind, message in [
        (3, TypeError, "bound=3 is a int; give a fitted BottleneckPredictor"),
        (BottleneckPredictor(teacher), NotFittedError, "not fitted"),
        (BottleneckPredictor(teacher, temperature=1, **settings).fit(tokens), ValueError, "temperature=1 .* fit the"),
    ]:
        with pytest.raises(kind, match=message):
            fitted.save_pretrained(tmp_path / "none", bound=wrong)
    assert not (tmp_path / "none").exists()


def test_push_to_hub_uploads_the_folder_in_one_commit(fitted, monkeypatch):
    fitted, tokens = fitted
    seen = {}

    def create_repo(api, repo_id, **options):
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(api, *, folder_path, **options):
        model = AutoModelForCausalLM.from_pretrained(folder_path)
        card = ModelCard.load(f"{folder_path}/README.md").content
        seen.update(options, token=api.token, logits=logits(model, tokens), card=card)
        url = "https://huggingface.co/owner/narrow/commit/1"
        return huggingface_hub.CommitInfo(commit_url=url, commit_message="", commit_description="", oid="1")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    url = fitted.push_to_hub("owner/narrow", token="none", private=True, revision="main")
    assert url.endswith("commit/1")
    np.testing.assert_array_equal(seen["logits"], logits(fitted.model_, tokens))
    assert 'AutoModelForCausalLM.from_pretrained("owner/narrow")' in seen["card"]
    assert (seen["repo_id"], seen["revision"], seen["token"]) == ("owner/narrow", "main", "none")
    assert seen["commit_message"] == "Upload student of width 8"


def test_without_a_network_the_repository_is_named(fitted, monkeypatch):
    def refused(api, repo_id, **options):
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refused)
    with pytest.raises(OSError, match="repo_id='owner/narrow' can't be reached: offline"):
        fitted[0].push_to_hub("owner/narrow")
    with pytest.raises(ValueError, match="repo_id='a/b/c' is no name of a repository"):
        fitted[0].push_to_hub("a/b/c")


def test_what_can_not_be_exported_is_named(fitted, tokens, tmp_path):
    fitted, _ = fitted
    with pytest.raises(NotFittedError):
        DistilledStudent(fitted.teacher, 8).save_pretrained(tmp_path / "none")
    (tmp_path / "file").touch()
    for folder, options, kind, message in [
        (tmp_path / "file", {}, ValueError, "folder=.*file' is a file"),
        (3, {}, TypeError, "folder=3"),
        (tmp_path / "none", {"tokenizer": word_tokenizer(99)}, ValueError, "has 100 tokens, and the student 64"),
        (tmp_path / "none", {"tokenizer": [1]}, TypeError, re.escape("tokenizer=[1] is a list")),
    ]:
        with pytest.raises(kind, match=message):
            fitted.save_pretrained(folder, **options)

    @make_student.register
    def _(teacher: Padded, width, *, init="random", random_state=None, tokens=None):
        return Padded(make_student(teacher.model, width, init="random", random_state=random_state), 0)

    other = student(Padded(new_teacher(), 0)).fit(tokens)
    with pytest.raises(ValueError, match="student of type Padded is no model of transformers"):
        other.save_pretrained(tmp_path / "none")
    assert not (tmp_path / "none").exists()
