from smqueue.words import left, span, told

__all__ = ["left", "span", "told"]
