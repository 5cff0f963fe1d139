"""Tests: behaviour by name; real processes and real sockets at the edges."""
