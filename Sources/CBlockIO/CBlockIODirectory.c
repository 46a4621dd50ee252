#define _GNU_SOURCE
#include "CBlockIODirectory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static int result_of(int result) { return result < 0 ? -errno : result; }

int cblockio_open_directory(const char *path) {
    return result_of(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

int cblockio_open_in(int directory, const char *name, int flags, int follow) {
    flags |= O_CLOEXEC | O_NONBLOCK | O_NOCTTY | (follow ? 0 : O_NOFOLLOW);
    return result_of(openat(directory, name, flags));
}

int cblockio_create_in(int directory, const char *name, unsigned mode) {
    return result_of(openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode));
}

int cblockio_stat_in(int directory, const char *name, struct stat *result, int follow) {
    return result_of(fstatat(directory, name, result, follow ? 0 : AT_SYMLINK_NOFOLLOW));
}

int cblockio_remove_in(int directory, const char *name) { return result_of(unlinkat(directory, name, 0)); }

int cblockio_rename_in(int directory, const char *from, const char *to) {
    return result_of(renameat(directory, from, directory, to));
}

int cblockio_rename_without_replacing_in(int directory, const char *from, const char *to) {
    if (renameat2(directory, from, directory, to, RENAME_NOREPLACE) == 0) return 0;
    if (errno != EINVAL && errno != ENOSYS) return -errno;
    // A link is made exclusively, too; for a moment the file then has both names.
    if (linkat(directory, from, directory, to, 0) != 0) return -errno;
    return result_of(unlinkat(directory, from, 0));
}

int cblockio_sync_directory(int directory) {
    int result;
    do {
        result = result_of(fsync(directory));
    } while (result == -EINTR);
    return result;
}

int64_t cblockio_path_of(int descriptor, char *path, size_t capacity) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, capacity);
    return length < 0 ? -errno : length;
}

int cblockio_duplicate(int descriptor) { return result_of(fcntl(descriptor, F_DUPFD_CLOEXEC, 0)); }
