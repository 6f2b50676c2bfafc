"""`rayssl VERB …`: finds the verb's module and turns its end into an exit code."""

import atexit
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from rayssl.pipeline.base.errors import UserError, impossible_path, nearest, outside_fault
from rayssl.pipeline.base.reporter import Interrupted
from rayssl.pipeline.base.settings_files import cut
from rayssl.pipeline.base.terminal import plain_lines, say

LONGEST_WORD = 300  # letters of a message that stand together, such as a path
LONGEST = 2000  # letters of a message

VERBS = {
    "run": "the whole pipeline by a recipe; on your own images without one: a race",
    "race": "which embedding suits your images: candidates race within a time budget",
    "data": "what is concluded about a folder's images, with a contact sheet; nothing is trained",
    "recipes": "list the recipes, or show one",
    "pretrain": "train an encoder by a recipe",
    "probe": "linear probes on every stage of a run's encoder",
    "finetune": "train a run's encoder and a classifier on few labels",
    "embed": "embeddings of a run's images, or of a folder by pretrained weights",
    "index": "a FAISS index over a run's embeddings",
    "sync": "make a run's index what its folder of images holds by now",
    "evaluate": "kNN, k-means, retrieval and health of a run's embeddings",
    "query": "the most similar images of a run to some image files",
    "serve": "a page and an HTTP interface to search the images of runs",
    "duplicates": "images that are there more than once, and those that splits share",
    "outliers": "images that are unlike all others, and blurred, dark or odd pictures",
    "mislabelled": "images whose label disagrees with those of their neighbours",
    "cluster": "images in clusters, with the most central ones of each",
    "reconstruct": "what an autoencoder makes of validation images",
    "interpolate": "from one image to another by way of their codes",
    "sample": "new images from a variational autoencoder or a PixelCNN",
    "anomalies": "the images least like those that a run was trained on",
    "tune": "search for the augmentation that suits the images",
    "report": "report.html over one run or several",
    "export": "the encoder for torchvision, timm, ONNX or plain torch, with a model card",
    "compare": "the figures of several runs beside each other, with paired intervals",
    "verify": "check every file of a run folder",
    "profile": "where a training step's time goes",
    "weights": "pretrained weights on this machine; fetch some by name",
    "cache": "decoded images and data sets kept between runs: list them, clean up",
    "submit": "run a verb as a job on a Ray cluster",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The console command."""
    verb, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    return run_verb(verb, words)


def command() -> NoReturn:
    """The console command as a process."""
    verb, *words = sys.argv[1:] or ["--help"]
    leave(run_verb(verb, words), at_once=verb == "query")


def leave(code: int, *, at_once: bool = False) -> NoReturn:
    """End this process; one of torchrun's, or `at_once`, without Python's own ending.

    Under torchrun a thread of gloo's may still hold a tensor of the last collective, and where it lets it go while the
    interpreter ends, it aborts a process whose work is done. No call waits for that thread: a wrapped model of
    DistributedDataParallel keeps the process group alive after it was destroyed. A query would wait for the CUDA
    libraries that FAISS loads: they read themselves into memory to end.
    """
    if not at_once and "TORCHELASTIC_RUN_ID" not in os.environ:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_verb(verb: str, argv: Sequence[str]) -> int:
    """0: done; 2: the input is wrong (one line on stderr); 1: a fault of ours; 130, 143: stopped by a signal."""
    write_anything()
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    # Threads that wait for each other asleep, not spinning: where a core is shared, spinning cost up to 30 times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if verb in ABOUT:
            print(ABOUT[verb]())
            return 0
        check_surroundings(argv)
        if verb not in VERBS:
            raise UserError(f"unknown command '{verb}'{nearest(verb, VERBS)}: see rayssl --help")
        code: int = importlib.import_module(f"rayssl.jobs.{verb}").main(list(argv))
        return code
    except SystemExit as stop:  # of --help, or of a worker whose rank 0 has said what is wrong
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except UserError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        print("rayssl: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Interrupted as stop:
        left = {"tune": "goes on with the trials that are left", "race": "goes on with the race"}
        goes_on = left.get(verb, "continues from the checkpoint")
        print(f"rayssl: stopped; the same command {goes_on}", file=sys.stderr)
        return 128 + stop.number
    except Exception as error:
        if told := impossible_path(error):
            complain(told)
            return 2
        if told := outside_fault(error):
            complain(told)
            return 1
        print(plain_lines(traceback.format_exc()), end="", file=sys.stderr)
        what = f"internal error ({type(error).__name__}): this is a bug in rayssl"
        print(f"rayssl: {what}, please report it with the traceback above. Completed work is kept", file=sys.stderr)
        return 1


def complain(text: str) -> None:
    """One line of bounded length on stderr: what is given may be endless, and is repeated in it."""
    words = [cut(word, LONGEST_WORD) for word in text.split()]
    say(cut(f"rayssl: {' '.join(words)}", LONGEST), file=sys.stderr)


def write_anything() -> None:
    """A name that the terminal's encoding has no letters for is written with escapes, not refused."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def check_surroundings(argv: Sequence[str]) -> None:
    """Raises UserError where no path could be told, or none with these letters in it."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the current folder cannot be used ({error.strerror}): cd to one that exists") from None
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not "".join(argv).isascii():
        raise UserError(f"paths are read as {encoding} here (PYTHONUTF8 is 0, or the locale says so): set PYTHONUTF8=1")


def usage() -> str:
    """The list of verbs."""
    lines = [f"  {verb:<12} {text}" for verb, text in VERBS.items()]
    head = "Usage: rayssl VERB … (rayssl VERB --help says more)\n\nFrom a folder of images to searchable embeddings.\n"
    return "\n".join([head, *lines])


def version() -> str:
    """What this is, and which."""
    from rayssl.pipeline import __version__

    return f"rayssl {__version__}"


# What is asked of the command itself, not of a verb.
ABOUT = {"-h": usage, "--help": usage, "help": usage, "--version": version}


if __name__ == "__main__":
    command()
