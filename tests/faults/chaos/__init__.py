"""The chaos suite: real producers, workers and servers under a seeded schedule of faults, and the exact truth after it.

``python -m tests.faults.chaos --help`` says how to run it. The modules, from the bottom up: ``errands`` and ``load``
what is fed and what must become of it; ``application`` the machines, counted; ``producer`` a process that feeds;
``middle`` the proxy; ``site`` all processes; ``schedule`` when which fault hits; ``strikes`` the faults; ``progress``
how long nothing moved; ``live`` the audit while all runs; ``truth`` the comparison; ``report`` and ``timeline`` what is
shown; ``ending`` what comes after the last fault; ``run`` all of it in order.
"""
