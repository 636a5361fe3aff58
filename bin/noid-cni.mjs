#!/usr/bin/env node
/** The door of the CNI plugin: src/cni/main.ts, under the Node that noid supports. Engines find it by its file's name, or a link's. */
import { fileURLToPath } from 'node:url'
import { load, supported } from './supported.mjs'

await supported(fileURLToPath(import.meta.url), async () => (await load('cni/main')).main())
