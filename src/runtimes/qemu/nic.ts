/**
 * From a nic as the backend gives it to QEMU's -netdev: which descriptors are opened for it, in which namespace, and what is then said.
 *
 * Owns: the descriptors until `close`; the child gets its own copies by inheritance.
 * A TAP is opened by its name in its namespace; a macvtap by its device numbers through a private node, because /dev/tapN collides between
 * namespaces. Datagrams and vhost-user are paths that QEMU itself opens, so that a switch which starts again is found again.
 */
import { execFileSync } from 'node:child_process'
import { closeSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { openTap, openTapNode } from '#tun-tap'
import type { Nic } from '../../plugins/contract.ts'
import { inNetns } from '../../sys/netns.ts'
import { escaped } from './command.ts'

export interface OpenNic {
  /** The value of -netdev without its id. */
  readonly netdev: string
  /** More arguments that must stand before it. */
  readonly before: readonly string[]
  /** To be inherited as `firstFd`, `firstFd + 1`, ... */
  readonly fds: readonly number[]
  /** vhost-user: the back-end maps the guest's memory. */
  readonly sharedMemory: boolean
  close(): void
}

const MKNOD_MS = 10_000

/** Opens what the nic needs. `dir`: a private directory where device nodes work; `door`: where QEMU finds the switch's socket. */
export function openNic(nic: Nic, firstFd: number, dir: string, door?: string): OpenNic {
  switch (nic.kind) {
    case 'tap': {
      const open = () => openTap({ name: nic.ifname, vnetHdr: nic.vnetHdr, multiQueue: nic.queues > 1 }).fd
      return tap(nic.netns === undefined ? open() : inNetns(nic.netns, open), firstFd)
    }
    case 'tap-device':
      return tap(openNode(nic.major, nic.minor, join(dir, 'tap.node')), firstFd)
    case 'dgram': {
      // A socket that QEMU left there would be in its way.
      rmSync(nic.peer, { force: true })
      const [local, remote] = [escaped(nic.peer), escaped(door ?? nic.path)]
      return paths(`dgram,local.type=unix,local.path=${local},remote.type=unix,remote.path=${remote}`)
    }
    case 'vhost-user':
      return {
        ...paths('vhost-user,chardev=vhost'),
        before: ['-chardev', `socket,id=vhost,path=${escaped(door ?? nic.path)},reconnect=1`],
        sharedMemory: true,
      }
    default:
      throw new Error(`QEMU cannot use a nic of kind ${nic.kind}`)
  }
}

/** A nic that leads nowhere: what a template is made with (template.ts). */
export function nowhere(dir: string): OpenNic {
  return paths(
    `dgram,local.type=unix,local.path=${escaped(join(dir, 'nic'))},remote.type=unix,remote.path=${escaped(join(dir, 'nobody'))}`,
  )
}

const paths = (netdev: string): OpenNic => ({ netdev, before: [], fds: [], sharedMemory: false, close: () => {} })

const tap = (fd: number, firstFd: number): OpenNic => ({
  netdev: `tap,fd=${firstFd}`,
  before: [],
  fds: [fd],
  sharedMemory: false,
  close: () => closeSync(fd),
})

function openNode(major: number, minor: number, node: string): number {
  rmSync(node, { force: true })
  execFileSync('mknod', ['-m', '0600', node, 'c', String(major), String(minor)], { timeout: MKNOD_MS })
  try {
    return openTapNode(node)
  } finally {
    rmSync(node, { force: true })
  }
}
