"""Examples under the help of every command, as one would type them: (what it is for, command line)."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "compress": (
        (
            "A text classifier at 60% sparsity with int8 weights, measured on test.jsonl",
            "winnow compress ./my-bert --data train.jsonl --column text --label label \\\n"
            "    --eval test.jsonl --sparsity 0.6 --values int8 --out smaller",
        ),
        (
            "The plan for the smallest file that loses at most one point",
            "winnow compress ./my-bert --data train.jsonl --max-drop 1 --dry-run",
        ),
        (
            "A language model in the 2:4 pattern, streamed from its shards within 4 GB",
            "winnow compress ./my-llm --data corpus.txt --structure 2:4 --ram 4GB \\\n    --out smaller",
        ),
        (
            "A plain torch CNN at 90%: layer-wise sparsity learned in two minutes",
            "winnow compress mypackage:build_resnet --weights resnet.safetensors \\\n"
            "    --data images.npz --sparsity 90% --method fcpts --time 2m --out lighter",
        ),
    ),
    "run": (
        ("What a recipe would do, without doing it", "winnow run recipe.yaml --dry-run"),
        (
            "Another sparsity than the recipe's; finished stages are kept for reuse",
            "winnow run recipe.yaml --set ticket.sparsity=0.9 --keep-work --out sparser",
        ),
        ("Three minutes that tell whether the whole run is worth it", "winnow run recipe.yaml --poc 3"),
    ),
    "eval": (
        (
            "The accuracy of a packed folder on a test set",
            "winnow eval smaller --data test.jsonl --column text --label label",
        ),
        (
            "Against the dense model: paired change, agreement, KL divergence",
            "winnow eval smaller --data test.jsonl --reference ./my-bert",
        ),
        (
            "The perplexity of a language model on the first 200 segments of a text",
            "winnow eval ./my-llm --data wiki.txt --length 512 --eval-limit 200",
        ),
    ),
    "inspect": (
        ("Which layers can be pruned, and why others cannot", "winnow inspect ./my-bert"),
        (
            "The same with the output head prunable and the first block not",
            "winnow inspect ./my-bert --include classifier --exclude '*.layer.0.*'",
        ),
        ("Sparsity and bits of every packed tensor, for a program", "winnow inspect smaller --json"),
    ),
    "bench": (
        ("A packed folder against every backend that is installed", "winnow bench smaller"),
        (
            "One and eight inputs of 128 tokens; ONNX Runtime and OpenVINO as rivals",
            "winnow bench smaller --batch 1,8 --length 128 --with packed,onnx,openvino",
        ),
        (
            "A plain torch model on real inputs, every matrix timed alone too",
            "winnow bench lighter --factory mypackage:build_resnet --data images.npz \\\n    --per-layer",
        ),
    ),
    "report": (
        ("Print the summary, and write report.html again", "winnow report smaller"),
        ("Every figure of the report, for a program", "winnow report smaller --json"),
        ("The report of the demo", "winnow report winnow-demo"),
    ),
    "export": (
        ("A folder that loads without winnow", "winnow export smaller --out plain"),
        ("The same, with the form named", "winnow export smaller --to dense --out plain"),
        ("From a script: prints the folder as JSON", "winnow export smaller --out plain --json"),
    ),
    "keep": (
        (
            "A candidate that was measured and not written, into smaller-int4-g128-gptq",
            "winnow keep smaller int4-g128-gptq",
        ),
        ("Into a folder of another name", "winnow keep smaller int8-rtn --out smaller-int8"),
        ("From a script: prints the folder as JSON", "winnow keep smaller int8-rtn --json"),
    ),
    "signs": (
        ("On built-in data, nothing to download", "winnow signs"),
        ("At two sparsities, six seeds of each arm", "winnow signs --sparsity 95%,98% --seeds 6 --out digits-signs"),
        (
            "Your own network, with the training it usually gets",
            "winnow signs mypackage:build_resnet --data train.npz --eval test.npz \\\n"
            "    --sparsity 90% --epochs 30 --batch 128 --lr 0.1 --optimizer sgd",
        ),
    ),
    "env": (
        ("For a bug report", "winnow env"),
        ("For a program", "winnow env --json"),
        ("Does another distribution named winnow shadow this one?", "winnow env"),
    ),
    "demo": (
        ("Train, compress, report, all in ./winnow-demo", "winnow demo"),
        ("How far it goes", "winnow demo --sparsity 0.95 --out demo-95"),
        ("Another training", "winnow demo --seed 1 --out demo-seed1"),
    ),
}
# What `winnow` alone prints: (command line, what it is for).
FIRST_STEPS = (
    ("winnow demo", "try it on built-in data, nothing to download"),
    ("winnow inspect MODEL", "list what can be pruned, and why the rest cannot"),
    ("winnow compress MODEL ...", "prune to a budget, pack, measure, report"),
    ("winnow bench DIR", "time the result against dense and stock runtimes"),
    ("winnow run RECIPE ...", "fine-tune, prune, pack and measure in one go"),
)
