"""An engine compared with itself: the same request computed in other ways, each of which must give the same."""
