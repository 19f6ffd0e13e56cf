"""LoRA on a causal language model: one loss for each sequence, over the tokens that it answers."""

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import crest

IGNORED = -100  # the label of a token that is not supervised: of the prompt, or padding

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
)
model = get_peft_model(LlamaForCausalLM(config), LoraConfig(task_type="CAUSAL_LM", r=4))


def make_example():
    """A prompt, and an answer that repeats it: only the answer is supervised."""
    prompt = torch.randint(1, 300, (int(torch.randint(3, 9, ())),))
    ignored = torch.full_like(prompt, IGNORED)
    return {"input_ids": torch.cat([prompt, prompt]), "labels": torch.cat([ignored, prompt])}


def collate(examples):
    """Pad to the longest of the batch."""
    batch = {
        name: pad_sequence([one[name] for one in examples], batch_first=True, padding_value=fill)
        for name, fill in (("input_ids", 0), ("labels", IGNORED))
    }
    return batch | {"attention_mask": (batch["input_ids"] > 0).long()}


def loss_fn(model, batch):
    """The mean loss of each sequence over its supervised tokens, shape (m,)."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = batch["labels"][:, 1:]
    losses = cross_entropy(
        logits[:, :-1].transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)


data = [make_example() for _ in range(400)]
base = DataLoader(data, batch_size=16, shuffle=True, collate_fn=collate)
loader = crest.CoresetLoader(base, model, loss_fn=loss_fn, budget=0.5)
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
for _ in range(4):
    for batch in loader:
        loss = crest.weighted_mean(loss_fn(model, batch), batch["sample_weight"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
seen = loader.examples()["num_observations"].mean()
print(f"loss {loss:.2f}; the losses of a sequence were seen {seen:.1f} times")
