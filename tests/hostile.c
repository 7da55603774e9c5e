/* A peer that sends what it likes: control data built by hand, one attack per run, then an honest message.
 *
 * hostile SOCKET-NUMBER ATTACK COUNT: does ATTACK COUNT times on the inherited AF_UNIX socket, waiting for one byte
 * from the receiver after each; exits with 77 if the kernel refuses, which it says on stdout as the errno's text.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SCM_PIDFD
#define SCM_PIDFD 4 /* on every Linux; glibc has had it since 2.39 */
#endif

static union { struct cmsghdr align; char bytes[16384]; } control;
static size_t used;
static int sock;

static void item(int level, int type, const void *data, size_t size)
{
    struct cmsghdr *c = (struct cmsghdr *)(control.bytes + used);
    c->cmsg_len = CMSG_LEN(size);
    c->cmsg_level = level;
    c->cmsg_type = type;
    memcpy(CMSG_DATA(c), data, size);
    used += CMSG_SPACE(size);
}

static void rights(int fd, int count)
{
    int fds[300];
    for (int i = 0; i < count; i++) fds[i] = fd;
    item(SOL_SOCKET, SCM_RIGHTS, fds, count * sizeof(int));
}

static int say(const char *data, size_t size)
{
    struct iovec iov = {(void *)data, size};
    struct msghdr msg = {0};
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    msg.msg_control = used ? control.bytes : NULL;
    msg.msg_controllen = used;
    int result = sendmsg(sock, &msg, MSG_NOSIGNAL) < 0 ? errno : 0;
    used = 0;
    return result;
}

static void credentials(void)
{
    struct ucred mine = {getpid(), getuid(), getgid()};
    item(SOL_SOCKET, SCM_CREDENTIALS, &mine, sizeof mine);
}

static int attack(const char *name)
{
    int null = open("/dev/null", O_RDWR), pair[2], result;
    const char *data = "evil";
    size_t size = 4;
#define IS(what) (strcmp(name, what) == 0)
    if (IS("many")) rights(null, 253);
    else if (IS("too-many")) rights(null, 254);
    else if (IS("several")) { rights(null, 2); rights(null, 1); rights(sock, 3); }
    else if (IS("zero-length")) { rights(null, 0); rights(null, 1); rights(null, 0); }
    else if (IS("only-zero-length")) rights(null, 0);
    else if (IS("foreign-level")) { item(41, 50, "junk", 4); rights(null, 1); item(6, 1, "", 0); }
    else if (IS("foreign-type")) { rights(null, 1); item(SOL_SOCKET, 999, "junk", 4); }
    else if (IS("credentials")) { credentials(); rights(null, 2); }
    else if (IS("credentials-after")) { rights(null, 2); credentials(); }
    else if (IS("scm-pidfd")) { rights(null, 1); item(SOL_SOCKET, SCM_PIDFD, &null, sizeof null); }
    else if (IS("short-length")) { rights(null, 1); ((struct cmsghdr *)control.bytes)->cmsg_len = 3; }
    else if (IS("long-length")) { rights(null, 1); ((struct cmsghdr *)control.bytes)->cmsg_len = 1 << 20; }
    else if (IS("odd-length")) { rights(null, 2); ((struct cmsghdr *)control.bytes)->cmsg_len -= 3; }
    else if (IS("bad-number")) rights(987654, 1);
    else if (IS("negative")) rights(-100, 1);
    else if (IS("no-data")) { rights(null, 2); size = 0; }
    else if (IS("long-data")) { rights(null, 2); data = malloc(size = 8000); memset((char *)data, 'e', size); }
    else if (IS("own-end")) rights(sock, 1);
    else if (IS("over-itself")) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return errno;
        int outer = sock;
        sock = pair[0];
        rights(pair[0], 1); rights(pair[1], 1);
        result = say("loop", 4);
        sock = outer;
        if (result) return result;
        rights(pair[0], 1); rights(pair[1], 1);
    } else if (IS("chain")) {
        int last = null, outer = sock;
        for (int i = 0; i < 8; i++) {
            if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return errno;
            sock = pair[0];
            rights(last, 1);
            result = say("link", 4);
            sock = outer;
            close(last);
            close(pair[0]);
            last = pair[1];
            if (result) { close(last); return result; }
        }
        rights(last, 1);
        result = say(data, size);
        close(last);
        return result;
    }
    else if (IS("o-path")) rights(open("/", O_PATH), 1);
    else if (IS("directory")) rights(open("/", O_RDONLY | O_DIRECTORY), 1);
    else if (IS("fifo")) {
        char path[64];
        snprintf(path, sizeof path, "/tmp/hostile-%d", getpid());
        if (mkfifo(path, 0600)) return errno;
        rights(open(path, O_RDWR), 1);
        unlink(path);
    }
    else if (IS("device")) rights(open("/dev/zero", O_RDWR), 1);
    else if (IS("epoll")) rights(epoll_create1(0), 1);
    else if (IS("io_uring")) {
        char params[256] = {0};
        int ring = syscall(425, 4, params);
        if (ring < 0) return errno;
        rights(ring, 1);
    }
    else return EINVAL;
    result = say(data, size);
    for (int fd = 3; fd < 100; fd++) if (fd != sock) close(fd);
    return result;
}

int main(int argc, char **argv)
{
    char byte;
    if (argc != 4) return 2;
    sock = atoi(argv[1]);
    int type;
    socklen_t length = sizeof type;
    if (getsockopt(sock, SOL_SOCKET, SO_TYPE, &type, &length)) return 2;
    int silent = type == SOCK_STREAM && strcmp(argv[2], "no-data") == 0; /* nothing arrives, so nothing is answered */
    for (int i = 0; i < atoi(argv[3]); i++) {
        int code = attack(argv[2]);
        if (code) {
            printf("%s\n", strerror(code));
            fflush(stdout);
        } else if (!silent && read(sock, &byte, 1) != 1) return 3;
    }
    int null = open("/dev/null", O_RDONLY);
    rights(null, 1);
    return say("honest", 6) ? 4 : 0;
}
