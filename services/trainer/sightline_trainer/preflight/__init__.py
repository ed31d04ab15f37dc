"""Preflight: finds what would end or waste a run, before any work is done.

    programs, model, data, memory, disk     from the recipe, with no service      `static`
    services                                limits, models, rule for reading pictures
    trial                                   one prompt sampled, scored, paired; one update step on it

Every check is a function that yields findings, each a sentence with its fix; all checks run, and their findings are
reported together. `sightline run RECIPE --check` runs all of them (`check`), the start of a run all except the trial
(`begin`). A run's start refuses what would end the run; a check also refuses what would waste it (`strict`).
"""
