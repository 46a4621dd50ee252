#define _GNU_SOURCE
#include "CBlockIOMapping.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static int result_of(int result) { return result < 0 ? -errno : result; }

int cblockio_open_mapping(const char *path, int exclusive) {
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | (exclusive ? O_CREAT | O_EXCL : 0);
    int descriptor;
    do {
        descriptor = open(path, flags, 0600);
    } while (descriptor < 0 && errno == EINTR);
    return result_of(descriptor);
}

int cblockio_map(int descriptor, size_t length, void **address) {
    void *start = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (start == MAP_FAILED) return -errno;
    *address = start;
    return 0;
}

int cblockio_unmap(void *address, size_t length) { return result_of(munmap(address, length)); }

int cblockio_unlink(const char *path) { return result_of(unlink(path)); }

void cblockio_store_release(void *address, uint64_t value) {
    __atomic_store_n((uint64_t *)address, value, __ATOMIC_RELEASE);
}

uint64_t cblockio_load_acquire(const void *address) {
    return __atomic_load_n((const uint64_t *)address, __ATOMIC_ACQUIRE);
}
