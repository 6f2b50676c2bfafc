"""Entry points, one thin module a verb: parse, call, print where the result is."""
