"""Methods that can be fed with embeddings alone.

Methods that look at pictures are counted from pixels in tests/methods/test_vision_side.py and
test_controls.py, learned tokens in tests/costs/test_overheads.py.
"""

from dynllava import methods

FROM_EMBEDDINGS = [
    name
    for name in methods.names()
    for plan in [methods.create(name).plan(8)]
    if plan.prompt != "split" and not {cut.stage for cut in plan.cuts} & {"pixels", "features"}
]
