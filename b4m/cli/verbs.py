"""What `b4m --help` and the verbs' own help say beside docstrings: summaries and examples."""

from collections.abc import Mapping

VERBS: Mapping[str, str] = {
    "prepare": "Choose and caption the images of contents and styles",
    "train": "Train an adapter of a content or of a style",
    "merge": "Make one adapter of several",
    "sample": "Generate images with adapters, or with the base alone",
    "evaluate": "Score images against the references",
    "report": "Write one page with references, images, scores and settings",
    "compare": "All of these for contents x styles x methods, in one report",
    "inspect": "Say what an adapter file is, or how several of them meet",
    "convert": "Write an adapter for another tool",
    "clean": "Drop what an adapter does not need",
    "extract": "Make an adapter of two checkpoints",
}
# What a verb works on is named by position; everything else is a flag.
POSITIONAL: Mapping[str, tuple[str, ...]] = {
    "prepare": ("source",),
    "merge": ("adapters",),
    "evaluate": ("samples",),
    "report": ("samples",),
    "compare": ("source",),
    "inspect": ("files",),
    "convert": ("file",),
    "clean": ("file",),
    "extract": ("base", "tuned"),
}
EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "prepare": (
        "b4m prepare data/emojigrid --content octopus --style openmoji --out runs/mine/data",
        "b4m prepare my-images --content mug --style sketch --out runs/mine/data",
    ),
    "train": (
        "b4m train --kind content --method b4m --data runs/mine/data --concept octopus"
        " --out runs/mine/content.safetensors",
        "b4m train --kind style --method lora --data runs/mine/data --concept openmoji"
        " --rank 8 --steps 200 --flip --out runs/mine/style.safetensors",
    ),
    "merge": (
        "b4m merge --method direct runs/mine/content.safetensors runs/mine/style.safetensors"
        " --weights 1 0.8 --out runs/mine/merged.safetensors",
        "b4m merge mug.safetensors ink.safetensors paper.safetensors --method tsv --auto-strength"
        ' --weights 1 "0.8 text_encoder=0" 0.5 --out runs/mine/merged.safetensors',
    ),
    "sample": (
        "b4m sample --adapter runs/mine/merged.safetensors --data runs/mine/data"
        " --seed 0 1 2 --label direct --out runs/mine/samples/direct",
        'b4m sample --adapter runs/mine/merged.safetensors --prompt "a snq sea animal in w@z style"'
        " --out runs/mine/samples/own",
    ),
    "evaluate": ("b4m evaluate runs/mine/samples/* --data runs/mine/data --out runs/mine/scores",),
    "report": (
        "b4m report runs/mine/samples/* --scores runs/mine/scores --data runs/mine/data"
        " --out runs/mine/report.html",
        "b4m report runs/contest --results docs/results/2026-11-25",
    ),
    "compare": (
        "b4m compare data/emojigrid --content octopus owl --style openmoji painted-19"
        " --method b4m duolora direct --train-with steps=300 b4m.rank=16 --out runs/compare",
        "b4m compare --preset contest --dry-run",
    ),
    "inspect": (
        "b4m inspect runs/mine/merged.safetensors",
        "b4m inspect runs/mine/mug.safetensors runs/mine/ink.safetensors --image meeting.png",
    ),
    "convert": (
        "b4m convert runs/mine/merged.safetensors --form kohya --out runs/mine/kohya.safetensors",
    ),
    "clean": ("b4m clean mug.safetensors --energy 0.99 --out lean.safetensors",),
    "extract": (
        "b4m extract base.safetensors tuned.safetensors --rank 64 --out tuned-lora.safetensors",
    ),
}
# The argument that decides which settings a verb has.
SELECTOR: Mapping[str, str] = {"train": "method", "merge": "method", "sample": "combine"}
