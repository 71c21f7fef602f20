"""Videos from outside: fetched and decoded in processes that can be killed."""
