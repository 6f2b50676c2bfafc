"""Runs served by HTTP: `app.py` has the routes, `guard.py` what every request has to pass, `opened.py` what is served.

It knows the run folder and `search`, and nothing of Ray; `static/` holds the page, built from the sources in `web/`.
"""
