/** Round trips through libc: what goes out comes back, and a failure is −errno. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import fc from 'fast-check'
import { EPOLLIN, EPOLLOUT, Epoll } from '../../src/sys/epoll.ts'
import { errno, errnoName, errnoText, must, SysError } from '../../src/sys/errno.ts'
import { close, dup, O_NONBLOCK, open, pipe, read, setNonblock, write } from '../../src/sys/fd.ts'
import { addressOf, Scratch } from '../../src/sys/libc.ts'
import { linkIndex, linkMac, linkMtu } from '../../src/sys/netdev.ts'
import { RouteSocket, RTN } from '../../src/sys/netlink.ts'
import { raiseOpenFiles } from '../../src/sys/privilege.ts'
import { isOpen, recvWithFds, sendWithFds, socketpair } from '../../src/sys/scm.ts'
import {
  AF_INET,
  AF_UNIX,
  accept,
  addressBytes,
  addressText,
  bind,
  connect,
  fillAddress,
  getpeername,
  getsockname,
  isMapped,
  listen,
  peerCredentials,
  readAddress,
  SOCK_STREAM,
  socket,
} from '../../src/sys/socket.ts'

const pair = (nonblock = true) => {
  const p = socketpair(SOCK_STREAM, nonblock)
  assert.ok(typeof p !== 'number')
  return p
}

test('errno: name, sentence, error', () => {
  assert.equal(errnoName(-errno.EADDRINUSE), 'EADDRINUSE')
  assert.equal(errnoText(98), 'address already in use (EADDRINUSE)')
  assert.throws(
    () => must('close', close(-1)),
    (e) => e instanceof SysError && e.code === 'EBADF' && e.message.startsWith('close: '),
  )
  assert.equal(must('close', 3), 3)
})

test('pipe, read, write, dup: bytes and −errno', () => {
  const p = pipe(O_NONBLOCK)
  assert.ok(typeof p !== 'number')
  const [r, w] = p
  const s = new Scratch(64)
  assert.equal(read(r, s.address, 64), -errno.EAGAIN)
  s.setText(0, 'hello')
  const w2 = dup(w, 50)
  assert.ok(w2 >= 50)
  assert.equal(write(w2, s.address, 5), 5)
  assert.equal(close(w), 0)
  assert.equal(close(w2), 0)
  assert.equal(read(r, s.address + 32, 32), 5)
  assert.equal(s.text(32, 5), 'hello')
  assert.equal(read(r, s.address, 8), 0)
  assert.equal(setNonblock(r, false), 0)
  close(r)
  assert.equal(write(r, s.address, 1), -errno.EBADF)
  assert.equal(open('/nonexistent/x', 0), -errno.ENOENT)
})

test('scratch words hold pointers', () => {
  const s = new Scratch(16)
  fc.assert(
    fc.property(fc.maxSafeNat(), (n) => {
      s.setWord(8, n)
      return s.word(8) === n
    }),
  )
})

test('addresses: text to bytes to text, and through a sockaddr', () => {
  for (const [text, as] of [
    ['1.2.3.4', undefined],
    ['::', undefined],
    ['::1', undefined],
    ['2001:db8::1:0:0:1', undefined],
    ['2001:DB8:0:0:8:800:200C:417A', '2001:db8::8:800:200c:417a'],
    ['::ffff:10.0.0.1', '10.0.0.1'],
    ['fe80::1', undefined],
    // A link is a number here: whoever has its name looks it up.
    ['fe80::1%3', undefined],
    ['2001:db8::1%3', '2001:db8::1'],
    ['64:ff9b::192.0.2.33', '64:ff9b::c000:221'],
  ] as const)
    assert.equal(addressText(addressBytes(text)), as ?? text)
  for (const none of ['1.2.3', 'fe80::1%eth0']) assert.throws(() => addressBytes(none), RangeError)
  const s = new Scratch(64)
  fc.assert(
    fc.property(fc.oneof(fc.ipV4(), fc.ipV6()), fc.integer({ min: 0, max: 65535 }), fc.boolean(), (text, port, as6) => {
      const bytes = addressBytes(text)
      const out = new Uint8Array(20)
      assert.equal(fillAddress(s, 0, bytes, 0, port, as6), !as6 && isMapped(bytes, 0) ? 16 : 28)
      assert.equal(readAddress(s, 0, out, 4), port)
      assert.deepEqual(out.slice(4), bytes)
      assert.deepEqual(addressBytes(addressText(bytes)), bytes)
    }),
  )
})

test('sockets: unix and inet, names, credentials, errors', () => {
  const dir = mkdtempSync(join(tmpdir(), 'noid-sys-'))
  try {
    const path = join(dir, 's')
    const l = socket(AF_UNIX, SOCK_STREAM)
    assert.equal(bind(l, { family: 'unix', path }), 0)
    assert.equal(listen(l), 0)
    const c = socket(AF_UNIX, SOCK_STREAM)
    assert.equal(connect(c, { family: 'unix', path: join(dir, 'no') }), -errno.ENOENT)
    assert.equal(connect(c, { family: 'unix', path }), 0)
    const s = accept(l)
    assert.deepEqual(getsockname(l), { family: 'unix', path })
    const who = peerCredentials(s)
    assert.ok(typeof who === 'object' && who.pid === process.pid && who.uid === process.getuid?.())
    for (const fd of [l, c, s]) close(fd)
    assert.throws(() => bind(0, { family: 'unix', path: 'x'.repeat(108) }), RangeError)
  } finally {
    rmSync(dir, { recursive: true })
  }
  const l = socket(AF_INET, SOCK_STREAM)
  assert.equal(bind(l, { family: 'inet', address: '127.0.0.1', port: 0 }), 0)
  listen(l)
  const at = getsockname(l)
  assert.ok(typeof at === 'object' && at.family === 'inet' && at.address === '127.0.0.1')
  const again = socket(AF_INET, SOCK_STREAM)
  assert.equal(bind(again, at), -errno.EADDRINUSE)
  assert.equal(connect(again, at), 0)
  assert.deepEqual(getpeername(again), at)
  close(l)
  close(again)
})

test('descriptors travel with bytes and belong to the receiver', () => {
  const [a, b] = pair()
  const p = pipe()
  assert.ok(typeof p !== 'number')
  assert.equal(recvWithFds(b, 10), -errno.EAGAIN)
  assert.equal(sendWithFds(a, Buffer.from('two'), p), 3)
  assert.equal(sendWithFds(a, Buffer.from(' more'), []), 5)
  close(p[0])
  close(p[1])
  const got = recvWithFds(b, 100)
  assert.ok(typeof got !== 'number')
  assert.equal(got.fds.length, 2)
  const [r, w] = got.fds as [number, number]
  const s = new Scratch(8)
  assert.equal(write(w, s.address, 3), 3)
  assert.equal(read(r, s.address, 8), 3)
  const rest = recvWithFds(b, 100)
  const all = Buffer.from(got.bytes).toString() + (typeof rest === 'number' ? '' : Buffer.from(rest.bytes).toString())
  assert.equal(all, 'two more')
  close(r)
  close(w)
  assert.equal(isOpen(r), false)
  close(a)
  const end = recvWithFds(b, 100)
  assert.ok(typeof end !== 'number' && end.bytes.length === 0)
  close(b)
})

test('epoll: readiness with descriptor and serial, level and removal', () => {
  const ep = new Epoll(8)
  const [a, b] = pair()
  assert.equal(ep.add(b, EPOLLIN, -7), 0)
  assert.equal(ep.add(b, EPOLLIN, 1), -errno.EEXIST)
  assert.equal(ep.wait(0), 0)
  sendWithFds(a, Buffer.from('x'), [])
  assert.equal(ep.wait(1000), 1)
  assert.deepEqual([ep.fdOf(0), ep.serialOf(0), ep.eventsOf(0)], [b, -7, EPOLLIN])
  assert.equal(ep.modify(b, EPOLLIN | EPOLLOUT, 9), 0)
  assert.equal(ep.wait(0), 1)
  assert.deepEqual([ep.serialOf(0), ep.eventsOf(0)], [9, EPOLLIN | EPOLLOUT])
  assert.equal(ep.remove(b), 0)
  assert.equal(ep.wait(0), 0)
  for (const fd of [a, b, ep.fd]) close(fd)
})

test('rtnetlink: a local address names its own link', () => {
  const r = new RouteSocket()
  assert.equal(r.route(addressBytes('127.0.0.1'), 0), 0)
  assert.equal(r.routeType, RTN.local)
  assert.deepEqual(r.links, [linkIndex('lo')])
  assert.equal(r.linkInfo(linkIndex('lo')), 0)
  assert.equal(r.name, 'lo')
  assert.equal(r.linkInfo(999_999), -errno.ENODEV)
  r.close()
  assert.equal(linkIndex('nosuchlink'), -errno.ENODEV)
  assert.ok(linkMtu('lo') > 0)
  assert.deepEqual([...(linkMac('lo') as Uint8Array)], [0, 0, 0, 0, 0, 0])
})

test('open files: the limit is raised, never beyond what was asked', () => {
  const n = raiseOpenFiles(4096)
  assert.ok(n > 0 && n <= 4096)
  assert.ok(addressOf(new Uint8Array(128)) > 0)
})
