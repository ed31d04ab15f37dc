"""Report: a run as one self-contained HTML file: curves, pictures with their candidates, pairs, lineage.

history.py    the content of a run's files: rows, updates, counts, seconds of each stage, policies
gallery.py    pictures: before and after, candidates with rewards, pairs, regressions
marking.py    words that are not in the picture; words that differ
meanings.py   what each curve means and when to worry; the warnings for a run
curves.py     charts as SVG in the page's colours
page.py       the page itself (report.html, report.css, report.js beside it)
live.py       the same page, served while the run continues
"""
