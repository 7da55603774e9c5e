/* What the compiler and <sys/socket.h> say of control messages; test_layouts.py compares it with ours.
 *
 *     layouts          sizes, offsets, CMSG_LEN, CMSG_SPACE and constants, a name and its numbers on each line
 *     layouts walk     reads control buffers in hex, one a line; prints what CMSG_FIRSTHDR and CMSG_NXTHDR find
 *                      in each: cmsg_level,cmsg_type,where the data begins,how long it is; "!" for a length
 *                      that cannot be
 *     layouts build    reads items, cmsg_level,cmsg_type,data in hex; prints the control buffer of each line
 *
 * constants.h is written by the test: { "NAME", NAME }, between #ifdef and #endif, for each constant it wants.
 */
#define _GNU_SOURCE 1
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>

#define LONGEST 2000
#define SIZE(type) printf("sizeof %s %zu\n", #type, sizeof(struct type))
#define FIELD(type, name) printf("field %s.%s %zu %zu\n", #type, #name, offsetof(struct type, name), \
                                 sizeof(((struct type *)0)->name))

static const struct { const char *name; long value; } constants[] = {
#include "constants.h"
    { NULL, 0 },
};

static void layouts(void)
{
    printf("sizeof size_t %zu\n", sizeof(size_t));
    SIZE(msghdr); SIZE(cmsghdr); SIZE(iovec); SIZE(pollfd);
    FIELD(msghdr, msg_name); FIELD(msghdr, msg_namelen); FIELD(msghdr, msg_iov); FIELD(msghdr, msg_iovlen);
    FIELD(msghdr, msg_control); FIELD(msghdr, msg_controllen); FIELD(msghdr, msg_flags);
    FIELD(cmsghdr, cmsg_len); FIELD(cmsghdr, cmsg_level); FIELD(cmsghdr, cmsg_type);
    FIELD(iovec, iov_base); FIELD(iovec, iov_len);
    FIELD(pollfd, fd); FIELD(pollfd, events); FIELD(pollfd, revents);
#ifndef __APPLE__
    SIZE(mmsghdr); FIELD(mmsghdr, msg_hdr); FIELD(mmsghdr, msg_len);
#endif
    for (size_t length = 0; length <= LONGEST; length++)
        printf("CMSG %zu %zu %zu\n", length, (size_t)CMSG_LEN(length), (size_t)CMSG_SPACE(length));
    for (size_t i = 0; constants[i].name != NULL; i++)
        printf("constant %s %ld\n", constants[i].name, constants[i].value);
}

/* The bytes of `hex`, in memory of just that size (and of malloc's alignment); the number of them in *size. */
static unsigned char *from_hex(const char *hex, size_t *size)
{
    *size = strspn(hex, "0123456789abcdef") / 2;
    unsigned char *bytes = malloc(*size ? *size : 1);
    for (size_t i = 0; i < *size; i++)
        sscanf(hex + 2 * i, "%2hhx", bytes + i);
    return bytes;
}

static void walk(const char *line)
{
    struct msghdr msg = { 0 };
    size_t size;
    unsigned char *control = from_hex(line, &size);
    msg.msg_control = control;
    msg.msg_controllen = size;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c != NULL; c = CMSG_NXTHDR(&msg, c)) {
        size_t at = (size_t)((unsigned char *)c - control), header = (size_t)(CMSG_DATA(c) - (unsigned char *)c);
        size_t length = c->cmsg_len;
        if (length < sizeof *c || length > size - at) {
            printf("%d,%d,! ", c->cmsg_level, c->cmsg_type);
            break;
        }
        printf("%d,%d,%zu,%zu ", c->cmsg_level, c->cmsg_type, at + header, length < header ? 0 : length - header);
    }
    putchar('\n');
    free(control);
}

static void build(char *line)
{
    struct msghdr msg = { 0 };
    size_t room = strlen(line) * CMSG_SPACE(1), used = 0;
    unsigned char *control = calloc(room, 1);
    msg.msg_control = control;
    msg.msg_controllen = room;
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    for (char *item = strtok(line, " \n"); item != NULL; item = strtok(NULL, " \n")) {
        size_t size;
        unsigned char *data = from_hex(strrchr(item, ',') + 1, &size);
        sscanf(item, "%d,%d", &c->cmsg_level, &c->cmsg_type);
        c->cmsg_len = CMSG_LEN(size);
        memcpy(CMSG_DATA(c), data, size);
        free(data);
        used += CMSG_SPACE(size);
        c = CMSG_NXTHDR(&msg, c);
    }
    for (size_t i = 0; i < used; i++)
        printf("%02x", control[i]);
    putchar('\n');
    free(control);
}

int main(int argc, char **argv)
{
    static char line[1 << 16];
    if (argc == 1)
        layouts();
    else
        while (fgets(line, sizeof line, stdin) != NULL)
            strcmp(argv[1], "walk") == 0 ? walk(line) : build(line);
    return 0;
}
