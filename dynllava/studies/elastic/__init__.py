"""One checkpoint for every keep rate against one trained for each, on the embedded model.

``dynllava study elastic`` trains (:mod:`.models`), scores (:mod:`.runs`) and says what follows
(:mod:`dynllava.analysis.elastic`); what is there already is not made again.
"""
