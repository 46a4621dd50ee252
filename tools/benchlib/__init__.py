"""What tools/bench measures with: see its --help, and docs/performance.md."""
