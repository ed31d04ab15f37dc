"""Preflight: what would end a run, or waste it, is looked for before any work is done.

    programs, model, data, memory, disk     from the recipe, with no service      `static`
    services                                limits, models, rule to read a picture
    trial                                   one prompt sampled, scored, paired; one update step on it

Every check is a function that yields findings, a sentence with its fix each; all are asked, and what they found is told
together. `sightline run RECIPE --check` asks all of them (`check`), the start of a run all but the trial (`begin`).
A run's start refuses what would end the run; a check refuses also what would waste it (`strict`).
"""
