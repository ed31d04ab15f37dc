"""Report: a run as one HTML file that needs nothing else: curves, pictures with their candidates, pairs, lineage.

history.py    what a run's files say: rows, updates, counts, seconds of each stage, policies
gallery.py    pictures: before and after, candidates with rewards, pairs, regressions
marking.py    words that are not in the picture; words that differ
meanings.py   what each curve means and when to worry; what worries in a run
curves.py     charts as SVG that takes the page's colours
page.py       the page itself (report.html, report.css, report.js beside it)
live.py       the same page, served while the run continues
"""
