// The sandbox and the qemu runtime keep the contract of runtimes, on a real network of the userspace backend.
import { existsSync } from 'node:fs'
import { test } from 'node:test'
import { runtimeConformance } from '../../src/runtimes/conformance/index.ts'
import { qemu } from '../../src/runtimes/qemu/index.ts'
import { sandbox } from '../../src/runtimes/sandbox/index.ts'
import { sharedImages } from '../images/shared.ts'
import { missing } from '../plugins/needs.ts'
import { ownHost } from '../plugins/own-host.ts'
import { qemuSkip } from './qemu-lab.ts'

const skip = missing() || (existsSync('/dev/net/tun') ? false : 'needs /dev/net/tun') || ownHost()

if (skip === false) runtimeConformance(test as never, sandbox)
else test('the sandbox passes the runtimes’ kit', { skip }, () => {})

const skipQemu = skip || qemuSkip()
process.env.NOID_IMAGES_DIR = sharedImages()
if (skipQemu === false) runtimeConformance(test as never, qemu, { image: 'tiny' })
else test('qemu passes the runtimes’ kit', { skip: skipQemu }, () => {})
