/**
 * A host for one test file: the file's main thread moves to a network and a mount namespace of its own, and what it starts is in it too.
 *
 * What the kit compares (links, rules, ports) then changes by nobody else's hand, and goes with the process.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import { networkInterfaces } from 'node:os'
import { CLONE_NEWNET, CLONE_NEWNS, unshare } from '../../src/sys/netns.ts'

/** Addresses of the host that are not loopback, as machines have them. */
const ADDRESS = '198.51.100.1/24'
const ADDRESS6 = '2001:db8:51::1/64'

/** false when it worked, so that it can be handed to `skip`; otherwise why it did not. */
export function ownHost(): string | false {
  const r = unshare(CLONE_NEWNET | CLONE_NEWNS)
  if (r < 0) return `no namespaces can be made (errno ${-r})`
  execFileSync('mount', ['--make-rprivate', '/'])
  // Names of other tests' namespaces: removing one detaches its mount here too.
  spawnSync('sh', ['-c', 'umount /run/netns/* 2>/dev/null; umount /run/netns 2>/dev/null'])
  const ip = (...argv: string[]) => execFileSync('ip', argv)
  ip('link', 'set', 'lo', 'up')
  ip('link', 'add', 'up0', 'type', 'veth', 'peer', 'name', 'up1')
  // No link-local address that comes into being while a case runs.
  for (const name of ['up0', 'up1']) ip('link', 'set', name, 'addrgenmode', 'none')
  ip('addr', 'add', ADDRESS, 'dev', 'up0')
  // There is none to be had in a kernel without IPv6.
  spawnSync('ip', ['addr', 'add', ADDRESS6, 'dev', 'up0', 'nodad'])
  ip('link', 'set', 'up0', 'up')
  ip('link', 'set', 'up1', 'up')
  // A link is listed once it has its carrier.
  for (let t = 0; t < 1000 && !networkInterfaces().up0; t++)
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10)
  return false
}
