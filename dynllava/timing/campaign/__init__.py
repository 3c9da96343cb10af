"""All measurements that a GPU is needed for, in order of worth, within a given time, resumable.

``dynllava bench --campaign DIR --minutes 9`` (:mod:`.runner`) starts one worker process after the
other (:mod:`.worker`); each does the next steps (:mod:`.steps`) and writes every round as it is
made (:mod:`.journal`), so that a kill at any moment loses at most the round being made.
"""
