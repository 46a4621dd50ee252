#pragma once

// Memory that is a file's, so that a store outlives the process. Functions that can fail return 0 or a negated errno.

#include <stddef.h>
#include <stdint.h>

/// open(2) for reading and writing, without following a link; with `exclusive` the file must not exist and is made
/// with mode 0600. A descriptor or a negated errno.
int cblockio_open_mapping(const char *path, int exclusive);
/// mmap(2) of the first `length` bytes, shared, for reading and writing.
int cblockio_map(int descriptor, size_t length, void **address);
/// The same, at an address that is a multiple of `alignment`, a power of two of at least a page.
int cblockio_map_aligned(int descriptor, size_t length, size_t alignment, void **address);
/// Makes a large page of those of a mapping (madvise(2), MADV_COLLAPSE), which keep their contents; 0 or a negated errno.
int cblockio_use_large_page(void *address, size_t length);
int cblockio_unmap(void *address, size_t length);
/// unlink(2).
int cblockio_unlink(const char *path);

/// Stores a number at an aligned address in one piece, after everything that was stored before it: who finds it there,
/// a process after this one was killed included, finds the rest, too.
void cblockio_store_release(void *address, uint64_t value);
uint64_t cblockio_load_acquire(const void *address);
