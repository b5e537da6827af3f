"""What the command line says of the benchmarks before torch is loaded: defaults, and names in their tables."""

MINI = "mini"  # names the bundled checkpoint
COMPARED, COMPARED_BUDGETS = "spare,resprune", "64,32"  # of `foveate ask --compare`
GPU = "RTX 4090"  # of `foveate estimate`


class Quality:
    """Of `foveate bench quality`."""

    DEFAULT, EVERY = "default", "all"
    SUITES = (
        "sign-space",
        "alpha",
        "beta",
        "floor",
        "pool",
        "seed",
        "normalise",
        "positions",
        "text-only",
    )
    BUDGETS = "192,128,64,32,16"
    FILE, PAGE = "results.jsonl", "quality.md"


class Speed:
    """Of `foveate bench speed`."""

    PRESETS = ("llava-0.5b", "qwen2.5-vl-0.5b", "llava-1.5-7b", "llava-next-7b", "qwen2.5-vl-7b")
    METHODS = "spare,resprune,uniform,fastv,pyramiddrop,sparsevlm"
    BUDGETS = "192,64"
    BATCHES, BATCHES_OF = "auto", {"cuda": "1,4,16", "cpu": "1"}
    REPEATS, WARMUP, NEW_TOKENS, TEXT = 7, 1, 16, 64  # text: a short system prompt and a question
    ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
    DTYPES = ("float32", "bfloat16", "float16")
    FILE, PAGE = "speed.jsonl", "performance.md"


class Serve:
    """Of `foveate bench serve`."""

    METHODS, BUDGETS = "rrqr,spare,resprune", "64"
    IMAGES, QUESTIONS, NEW_TOKENS, ROUNDS = 8, 1, 16, 6
    CONCURRENCY = "4"
    SIZE = (336, 336)  # pixels, width and height
    TIMEOUT = 600.0  # seconds until a request counts as lost
    FILE, PAGE = "serve.jsonl", "serving.md"
