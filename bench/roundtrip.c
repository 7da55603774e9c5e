/* What the kernel alone costs: the same transfers in C, with nothing allocated on the way.
 *
 *     roundtrip FDS BYTES MESSAGES SECTION [nonblock] [mmsg] [seqpacket]
 *
 * One round sends MESSAGES messages of BYTES bytes with FDS descriptors each over an AF_UNIX socketpair,
 * receives them and closes what came. SECTION says what of it is on the clock:
 *
 *     all        sending, receiving, closing
 *     transfer   sending and receiving; not closing
 *     receive    receiving and closing; not sending
 *
 * Prints two numbers: the median and the least of many batches, in nanoseconds for one round.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef MSG_CMSG_CLOEXEC
#define MSG_CMSG_CLOEXEC 0
#endif

enum { MAX_FDS = 253, BATCHES = 401, BATCH_NS = 500000 };
enum section { ALL, TRANSFER, RECEIVE };

struct setup {
    int fds, bytes, messages, nonblock, mmsg, type, sender, receiver;
    enum section section;
    int *received; /* MESSAGES * FDS, closed after each round */
    struct mmsghdr *out, *in;
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void *zeroed(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (memory == NULL)
        die("calloc");
    return memory;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void wait_for(int fd, short events)
{
    struct pollfd one = {fd, events, 0};
    while (poll(&one, 1, 5000) < 0)
        if (errno != EINTR)
            die("poll");
}

static void fill(struct mmsghdr *m, const struct setup *s, int fd)
{
    size_t space = CMSG_SPACE(sizeof(int) * s->fds);
    m->msg_hdr.msg_iov = zeroed(1, sizeof(struct iovec));
    m->msg_hdr.msg_iov->iov_base = zeroed(1, s->bytes);
    m->msg_hdr.msg_iov->iov_len = s->bytes;
    m->msg_hdr.msg_iovlen = 1;
    if (s->fds == 0)
        return;
    m->msg_hdr.msg_control = zeroed(1, space);
    m->msg_hdr.msg_controllen = space;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m->msg_hdr);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int) * s->fds);
    for (int i = 0; i < s->fds; i++)
        memcpy(CMSG_DATA(c) + i * sizeof(int), &fd, sizeof fd);
}

static void send_round(const struct setup *s)
{
    for (int i = 0; i < s->messages;) {
        int n = s->mmsg ? sendmmsg(s->sender, s->out + i, s->messages - i, MSG_NOSIGNAL)
                        : (int)sendmsg(s->sender, &s->out[i].msg_hdr, MSG_NOSIGNAL);
        if (n >= 0) {
            if (!s->mmsg && n != s->bytes)
                die("short write");
            i += s->mmsg ? n : 1;
        } else if (errno == EAGAIN)
            wait_for(s->sender, POLLOUT);
        else if (errno != EINTR)
            die("sendmsg");
    }
}

/* Takes the descriptors out of one received message, and makes its header ready for the next. */
static void take(const struct setup *s, int i)
{
    struct msghdr *h = &s->in[i].msg_hdr;
    if (s->fds) {
        struct cmsghdr *c = CMSG_FIRSTHDR(h);
        if (c == NULL || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof(int) * s->fds))
            die("descriptors missing");
        memcpy(s->received + i * s->fds, CMSG_DATA(c), sizeof(int) * s->fds);
        h->msg_controllen = CMSG_SPACE(sizeof(int) * s->fds);
    }
}

static void receive_round(const struct setup *s)
{
    for (int i = 0; i < s->messages;) {
        int n = s->mmsg ? recvmmsg(s->receiver, s->in + i, s->messages - i, MSG_CMSG_CLOEXEC | MSG_WAITFORONE, NULL)
                        : (int)recvmsg(s->receiver, &s->in[i].msg_hdr, MSG_CMSG_CLOEXEC);
        if (n > 0) {
            if (!s->mmsg && n != s->bytes)
                die("short read");
            for (int end = i + (s->mmsg ? n : 1); i < end; i++)
                take(s, i);
        } else if (n < 0 && errno == EAGAIN)
            wait_for(s->receiver, POLLIN);
        else if (n == 0 || errno != EINTR)
            die("recvmsg");
    }
}

static void close_round(const struct setup *s)
{
    for (int i = 0; i < s->messages * s->fds; i++)
        if (close(s->received[i]))
            die("close");
}

/* Nanoseconds on the clock for `rounds` rounds; the clock is read twice in all where everything is measured. */
static double batch(const struct setup *s, int rounds)
{
    double total = 0, start = now();
    for (int r = 0; r < rounds; r++) {
        double from = s->section == TRANSFER ? now() : 0;
        send_round(s);
        if (s->section == RECEIVE)
            from = now();
        receive_round(s);
        if (s->section == TRANSFER)
            total += now() - from;
        close_round(s);
        if (s->section == RECEIVE)
            total += now() - from;
    }
    return s->section == ALL ? now() - start : total;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void options(struct setup *s, int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: roundtrip FDS BYTES MESSAGES all|transfer|receive [nonblock] [mmsg] [seqpacket]\n");
        exit(2);
    }
    s->fds = atoi(argv[1]);
    s->bytes = atoi(argv[2]);
    s->messages = atoi(argv[3]);
    s->section = !strcmp(argv[4], "all") ? ALL : !strcmp(argv[4], "transfer") ? TRANSFER : RECEIVE;
    for (int i = 5; i < argc; i++) {
        s->nonblock |= !strcmp(argv[i], "nonblock");
        s->mmsg |= !strcmp(argv[i], "mmsg");
        if (!strcmp(argv[i], "seqpacket"))
            s->type = SOCK_SEQPACKET;
    }
    if (s->fds < 0 || s->fds > MAX_FDS || s->bytes < 1 || s->messages < 1) {
        fprintf(stderr, "roundtrip: out of range\n");
        exit(2);
    }
}

static void prepare(struct setup *s)
{
    int pair[2], fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || socketpair(AF_UNIX, s->type, 0, pair))
        die("socketpair");
    s->sender = pair[0];
    s->receiver = pair[1];
    for (int i = 0; s->nonblock && i < 2; i++)
        if (fcntl(pair[i], F_SETFL, O_NONBLOCK))
            die("fcntl");
    s->received = zeroed((size_t)s->messages * s->fds, sizeof(int));
    s->out = zeroed(s->messages, sizeof *s->out);
    s->in = zeroed(s->messages, sizeof *s->in);
    for (int i = 0; i < s->messages; i++) {
        fill(s->out + i, s, fd);
        fill(s->in + i, s, fd);
    }
}

int main(int argc, char **argv)
{
    static double figures[BATCHES];
    struct setup s = {.type = SOCK_STREAM};
    options(&s, argc, argv);
    prepare(&s);
    int rounds = 1;
    for (double took = batch(&s, 1); took < BATCH_NS && rounds < 1 << 20; took = batch(&s, rounds))
        rounds *= 2;
    for (int i = 0; i < BATCHES; i++)
        figures[i] = batch(&s, rounds) / rounds;
    qsort(figures, BATCHES, sizeof *figures, ascending);
    printf("%.1f %.1f\n", figures[BATCHES / 2], figures[0]);
    return 0;
}
