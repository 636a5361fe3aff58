/** What the host's routing says of a destination, in a namespace with every kind of route. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { openTap } from '../../packages/tun-tap/index.ts'
import { Routes } from '../../src/dataplane/routes.ts'
import { Arena } from '../../src/netstack/arena.ts'
import { ROUTE } from '../../src/netstack/host.ts'
import { close } from '../../src/sys/fd.ts'
import { inNetns } from '../../src/sys/netns.ts'
import { addressBytes } from '../../src/sys/socket.ts'
import { skipWithoutRoot } from './lab.ts'

test('every kind of route is told apart, and an answer is kept for a second', { skip: skipWithoutRoot }, () => {
  const netns = `nt${randomBytes(4).toString('hex')}`
  const ip = (...args: string[]) => execFileSync('ip', ['-n', netns, ...args])
  execFileSync('ip', ['netns', 'add', netns])
  const fds: number[] = []
  try {
    const { routes, bytes, at } = inNetns(`/run/netns/${netns}`, () => {
      for (const [name, address] of [
        ['eth0', '198.51.100.2/24'],
        ['noid7', '192.168.107.254/24'],
        ['noidx', '192.168.108.254/24'],
      ] as const)
        fds.push(openTap({ name, address, up: true }).fd)
      const arena = new Arena(new ArrayBuffer(256))
      return { routes: new Routes(arena), bytes: arena.bytes, at: arena.alloc(16) }
    })
    ip('link', 'set', 'lo', 'up')
    ip('-6', 'addr', 'add', '2001:db8:7::1/64', 'dev', 'noid7', 'nodad')
    let now = 0
    const kind = (text: string) => {
      bytes.set(addressBytes(text), at)
      // The socket that looks for a source address is this namespace's.
      const k = inNetns(`/run/netns/${netns}`, () => routes.lookup(at, now))
      return Object.entries(ROUTE).find(([, v]) => v === k)?.[0]
    }
    assert.equal(kind('203.0.113.9'), 'unreachable')
    ip('route', 'add', 'default', 'via', '198.51.100.1')
    ip('route', 'add', 'unreachable', '203.0.114.0/24')
    ip('route', 'add', 'blackhole', '203.0.115.0/24')
    ip('route', 'add', '10.1.0.0/16', 'nexthop', 'via', '192.168.107.1', 'nexthop', 'via', '198.51.100.1')
    ip('route', 'add', '10.2.0.0/16', 'nexthop', 'via', '198.51.100.1', 'nexthop', 'via', '192.168.107.1')
    // Still the answer of a moment ago; a second later a new one.
    assert.equal(kind('203.0.113.9'), 'unreachable')
    now = 1001
    for (const [text, expected] of [
      ['203.0.113.9', 'outside'],
      ['198.51.100.9', 'outside'],
      ['198.51.100.2', 'host'],
      ['127.0.0.1', 'loopback'],
      ['127.3.2.1', 'loopback'],
      ['0.0.0.0', 'loopback'],
      ['::1', 'loopback'],
      // by route, by the link's own address, by one of several next hops
      ['192.168.107.10', 'noid'],
      ['192.168.107.254', 'noid'],
      ['10.1.2.3', 'noid'],
      ['10.2.2.3', 'noid'],
      ['2001:db8:7::9', 'noid'],
      ['2001:db8:7::1', 'noid'],
      // not a name that noid gives
      ['192.168.108.10', 'outside'],
      ['192.168.108.254', 'host'],
      ['203.0.114.1', 'unreachable'],
      ['203.0.115.1', 'unreachable'],
      ['198.51.100.255', 'unreachable'],
      ['224.0.0.251', 'unreachable'],
      ['2001:db8:8::1', 'unreachable'],
    ] as const)
      assert.equal(kind(text), expected, text)
  } finally {
    for (const fd of fds) close(fd)
    execFileSync('ip', ['netns', 'delete', netns])
  }
})
