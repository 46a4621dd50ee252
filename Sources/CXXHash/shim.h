#pragma once
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
// Replaces the functions by those that use what vectors the processor has; the others know SSE2 only.
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

/// XXH3 of 128 bits, the fastest that there is on this processor.
static inline XXH128_hash_t cxxhash_xxh3_128(const void *bytes, size_t count) { return XXH3_128bits(bytes, count); }
