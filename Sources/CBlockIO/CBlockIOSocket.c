#define _GNU_SOURCE
#include "CBlockIOSocket.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

static int result(int value) { return value < 0 ? -errno : value; }

int cblockio_accept(int listener) {
    int value;
    do {
        value = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    } while (value < 0 && errno == EINTR);
    return result(value);
}

int64_t cblockio_receive(int socket, void *bytes, size_t count) {
    ssize_t value;
    do {
        value = recv(socket, bytes, count, MSG_DONTWAIT);
    } while (value < 0 && errno == EINTR);
    return value < 0 ? -errno : value;
}

int64_t cblockio_send(int socket, struct iovec *parts, size_t count) {
    struct msghdr message;
    memset(&message, 0, sizeof message);
    message.msg_iov = parts;
    message.msg_iovlen = count;
    ssize_t value;
    do {
        value = syscall(SYS_sendmsg, socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (value < 0 && errno == EINTR);
    return value < 0 ? -errno : value;
}

int cblockio_unreceived(int socket) {
    int count = 0;
    return ioctl(socket, FIONREAD, &count) < 0 ? -errno : count;
}

int cblockio_unfetched(int socket) {
    int count = 0;
    return ioctl(socket, TIOCOUTQ, &count) < 0 ? -errno : count;
}

int cblockio_shutdown(int socket) { return result(shutdown(socket, SHUT_RDWR)); }

int cblockio_listening_socket(int family) {
    return result(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

int cblockio_set_option(int socket, int level, int name, int value) {
    return result(setsockopt(socket, level, name, &value, sizeof value));
}

int cblockio_answers(const char *path) {
    struct sockaddr_un address;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof address.sun_path) return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0) return -errno;
    int value = result(connect(descriptor, (struct sockaddr *)&address, sizeof address));
    close(descriptor);
    return value;
}

int cblockio_epoll(void) { return result(epoll_create1(EPOLL_CLOEXEC)); }

int cblockio_epoll_watch(int epoll, int descriptor, bool reads, bool writes) {
    struct epoll_event event;
    memset(&event, 0, sizeof event);
    event.events = EPOLLONESHOT | (reads ? EPOLLIN | EPOLLRDHUP : 0) | (writes ? EPOLLOUT : 0);
    event.data.fd = descriptor;
    if (epoll_ctl(epoll, EPOLL_CTL_MOD, descriptor, &event) == 0) return 0;
    if (errno != ENOENT) return -errno;
    return result(epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event));
}

int cblockio_epoll_wait(int epoll, struct cblockio_event *events, int count) {
    struct epoll_event found[64];
    int taken;
    do {
        taken = epoll_wait(epoll, found, count < 64 ? count : 64, -1);
    } while (taken < 0 && errno == EINTR);
    if (taken < 0) return -errno;
    for (int i = 0; i < taken; i++) {
        const bool ended = (found[i].events & (EPOLLERR | EPOLLHUP)) != 0;
        events[i].descriptor = found[i].data.fd;
        events[i].reads = ended || (found[i].events & (EPOLLIN | EPOLLRDHUP)) != 0;
        events[i].ended = ended;
        events[i].writes = ended || (found[i].events & EPOLLOUT) != 0;
    }
    return taken;
}
