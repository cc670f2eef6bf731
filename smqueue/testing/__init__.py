"""For the tests of those who use smqueue. The fixture ``smqueue_server`` comes by itself once smqueue is installed."""
