"""Blocks and a whole model of transformers through epsc, on all GPUs of this machine: `python -m benchmarks.models`.

Needs torch, transformers (5.17 or newer) and this repository; no network. `--small` is the same with tiny sizes, on
CPU ranks too: `python -m benchmarks.models --small --ranks 2 --device cpu`. What is not begun within `--budget` seconds
(200) is left out, and said so. The table comes last; it returns 1 when a check fails.

Blocks: those of Qwen3-30B-A3B and DeepSeek-V2, from a config, with random weights, in bf16: `epsc.compile`, beside
the same layer from its `.eps` file with the same weights and schedule, each as it is and as a CUDA graph, and beside
transformers' grouped_mm with all experts on every GPU. A result is checked against the block on transformers' eager
path. In 16 bits a router may choose the other of two close experts: so each row is held against eager in bf16 or in
fp32 on the same numbers, whichever is nearer, and of all rows together the relative error (Frobenius) must be at most
1e-2.

Model: four layers of Qwen3-30B-A3B, the prefill of eight sequences per GPU, whole: with the last token's logits and
the cache. Ways that share nothing but weights: grouped_mm on one GPU per replica; `compile_model`;
`experts_implementation="epsc"`; transformers' own expert parallelism, in which every GPU computes the tokens of all.
The hidden states of all tokens are held against an fp32 model on its eager path, and may be 1.25 times as far off as
those of grouped_mm are.
"""
