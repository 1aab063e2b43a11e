import torch

from geofloor._training.checkpoints import load_optimizer_tensors, optimizer_tensors, read_tensors, write_tensors


def test_tensors_and_metadata_come_back(tmp_path):
    tensors = {"a": torch.randn(3, 4).T, "scalar": torch.tensor(2.0), "empty": torch.zeros(0, 3)}
    tensors["counts"] = torch.arange(5)
    write_tensors(tmp_path / "x", tensors, kind="test", metadata={"step": 3, "name": "é"})
    read, metadata = read_tensors(tmp_path / "x", kind="test")
    assert metadata == {"step": 3, "name": "é"}
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype


def test_the_same_content_gives_the_same_bytes(tmp_path):
    def content():
        write_tensors(tmp_path / "x", {"b": torch.ones(2), "a": torch.zeros(3)}, kind="test", metadata={"z": 1, "a": 2})
        return (tmp_path / "x").read_bytes()

    assert len({content() for _ in range(20)}) == 1


def test_an_optimizer_goes_on_as_if_never_stored():
    def run(interrupted):
        parameter = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.AdamW([parameter], lr=0.1)
        for step in range(6):
            if interrupted and step == 3:
                stored = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
                optimizer = torch.optim.AdamW([parameter], lr=0.1)
                load_optimizer_tensors(optimizer, stored)
            optimizer.zero_grad()
            (parameter - torch.arange(3)).square().sum().backward()
            optimizer.step()
        return parameter.detach()

    assert torch.equal(run(True), run(False))
