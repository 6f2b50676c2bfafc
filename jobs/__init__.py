"""Entry points, one thin module a verb: parse, call, print where the result is."""

if __name__ != "rayssl.jobs":
    raise ImportError("jobs is rayssl.jobs now: from rayssl.jobs import …, python -m rayssl.jobs.…")
