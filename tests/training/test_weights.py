import copy

import torch
from transformers import LlamaConfig, LlamaModel

from geofloor._training.weights import model_sha256


def test_models_are_told_by_every_weight_buffer_and_setting():
    module = torch.nn.Sequential(torch.nn.Linear(3000, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    digests = {model_sha256(module), model_sha256(copy.deepcopy(module))}
    assert len(digests) == 1
    for tensor in (*module.parameters(), module[1].running_mean, module[1].running_var):
        with torch.no_grad():
            tensor.view(-1)[-1] += 1e-3
        digests.add(model_sha256(module))
    assert len(digests) == 9
    digests.add(model_sha256(module.double()))
    assert len(digests) == 10


def test_a_configuration_is_part_of_a_model_and_its_name_and_device_dependent_buffers_are_not():
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, pad_token_id=None
    )
    model = LlamaModel(config)
    digest = model_sha256(model)
    model.config.name_or_path = "elsewhere"
    model.config.use_cache = not model.config.use_cache
    model.rotary_emb.inv_freq += 1e-7
    assert model_sha256(model) == digest
    model.config.rms_norm_eps *= 2
    assert model_sha256(model) != digest
