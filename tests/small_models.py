"""Small models, tokenizers and token ids for tests of language models."""

import copy

import numpy as np
import torch
from joblib import Parallel, delayed
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

N_VOCABULARY, WIDTH, N_LAYERS = 40, 16, 3
SIZES = {"vocab_size": N_VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2}


def new_model(model_class, config, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(config).eval()


def gpt_neox(seed=0):
    return new_model(GPTNeoXForCausalLM, GPTNeoXConfig(**SIZES, intermediate_size=32), seed)


def llama():
    return new_model(LlamaForCausalLM, LlamaConfig(**SIZES, intermediate_size=32))


def gpt2():
    config = GPT2Config(vocab_size=N_VOCABULARY, n_embd=WIDTH, n_layer=N_LAYERS, n_head=2, n_positions=64)
    return new_model(GPT2LMHeadModel, config)


def bert():
    return new_model(BertForMaskedLM, BertConfig(**SIZES, intermediate_size=32, max_position_embeddings=64))


def with_padded_vocabulary(model, n=5):
    """Give a copy of a model more tokens, as those that round up a vocabulary."""
    padded = copy.deepcopy(model)
    padded.resize_token_embeddings(N_VOCABULARY + n, mean_resizing=False)
    with torch.no_grad():
        padded.get_output_embeddings().weight[N_VOCABULARY:] = 0.5
    return padded


def word_tokenizer(n_words=N_VOCABULARY - 1, with_start=False):
    """Word "3" is token 3; token 0 is the end of text."""
    vocabulary = {"<end>": 0, **{str(i): i for i in range(1, n_words + 1)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if with_start:
        words.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")


def as_text(sequences):
    return [" ".join(map(str, ids)) for ids in sequences]


def random_sequences(lengths, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(1, N_VOCABULARY, size=length).tolist() for length in lengths]


def reference(model, ids, layer, skip_first=1):
    """Compute hidden states of one sequence alone, by a full forward pass."""
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return output.hidden_states[layer + 1][0, skip_first:].numpy()


MODEL = gpt_neox()
UNEQUAL = random_sequences([5, 1, 9, 2, 9, 3, 1, 7, 12, 4])
BLOCKS = np.array(random_sequences([11] * 10, seed=1))


def shared_model():
    """Return a model with dropout, for threads to share."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.2,
        hidden_dropout=0.3,
    )
    return GPTNeoXForCausalLM(config).eval()


def in_threads(*functions):
    """Run functions at once in threads, three times each, and return all results."""
    return Parallel(n_jobs=len(functions), backend="threading")(
        delayed(lambda f: [f() for _ in range(3)])(function) for function in functions
    )


def unembedding(model):
    return model.get_output_embeddings().weight.detach()


def same(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
